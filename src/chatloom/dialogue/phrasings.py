"""How people ask what a function does, in English and Chinese, and how the answers are framed.

The phrasings of instruction tuning, preferences, alignment and test are four disjoint groups, so that prompts of
those sets cannot meet whatever the names in them. `follow` phrasings make sense only after an earlier question.
"""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("en", "zh")
GROUPS = ("sft", "preference", "alignment", "test")


@dataclass(frozen=True)
class Phrasings:
    """Question patterns with `{name}` in them: `opening` ones open a conversation, `follow` ones go on with it."""

    opening: tuple[str, ...]
    follow: tuple[str, ...]


QUESTIONS: dict[str, dict[str, Phrasings]] = {
    "sft": {
        "en": Phrasings(
            (
                "What does `{name}` do?",
                "What is `{name}` for?",
                "Explain `{name}`.",
                "Describe `{name}` in one sentence.",
                "Can you tell me what `{name}` does?",
                "I found `{name}` in some code. What does it do?",
                "Please explain what `{name}` does.",
                "What happens when I call `{name}`?",
                "In Python, what is `{name}`?",
                "Give me a short description of `{name}`.",
                "Tell me about `{name}`.",
                "How would you describe `{name}`?",
                "What is the purpose of `{name}`?",
                "What can I use `{name}` for?",
                "What is `{name}`?",
                "Why would anyone call `{name}`?",
                "What does Python's `{name}` do?",
                "I am reading about `{name}`. What is it for?",
                "Could you describe `{name}` for me?",
                "What do I get from `{name}`?",
                "How does the documentation describe `{name}`?",
                "Look up `{name}`.",
                "I do not understand `{name}`. Can you help?",
                "Is there a short explanation of `{name}`?",
                "My program calls `{name}`. What for?",
                "Which task is `{name}` made for?",
                "`{name}`: what is it?",
                "Quick question: what does `{name}` do?",
                "A student asks about `{name}`. What do you answer?",
                "Define `{name}`.",
            ),
            ("And `{name}`?", "What about `{name}`?"),
        ),
        "zh": Phrasings(
            (
                "`{name}` 是做什么的？",
                "`{name}` 有什么用？",
                "请解释 `{name}`。",
                "用一句话描述 `{name}`。",
                "能告诉我 `{name}` 的作用吗？",
                "我在代码里看到了 `{name}`，它是做什么的？",
                "请说明 `{name}` 的功能。",
                "调用 `{name}` 会发生什么？",
                "在 Python 中，`{name}` 是什么？",
                "简单介绍一下 `{name}`。",
                "说说 `{name}`。",
                "你会怎么描述 `{name}`？",
                "`{name}` 的目的是什么？",
                "我可以用 `{name}` 做什么？",
                "`{name}` 是什么？",
                "为什么要调用 `{name}`？",
                "Python 的 `{name}` 是干什么的？",
                "我正在读 `{name}` 的文档，它有什么用途？",
                "请你描述一下 `{name}`，好吗？",
                "用 `{name}` 能得到什么？",
                "文档里怎么说 `{name}` 的？",
                "查一下 `{name}`。",
                "我不懂 `{name}`，能帮帮我吗？",
                "有没有关于 `{name}` 的简短解释？",
                "我的程序调用了 `{name}`，这是为了什么？",
                "`{name}` 的用途和功能是什么？",
                "想了解一下 `{name}`，它的作用是什么？",
                "快速提问：`{name}` 是用来做什么的呢？",
                "有同学问到 `{name}`，该怎么回答？",
                "给 `{name}` 下个定义。",
                "可以讲讲 `{name}` 吗？",
                "接下来想知道 `{name}` 的意思。",
                "给我说明一下函数 `{name}`。",
                "一句话：`{name}` 有哪些作用？",
            ),
            ("那 `{name}` 呢？", "`{name}` 又是什么？"),
        ),
    },
    "preference": {
        "en": Phrasings(
            (
                "Could you explain `{name}`?",
                "What is `{name}` used for?",
                "Summarise `{name}`.",
                "What would `{name}` do for me?",
                "I need to know what `{name}` does.",
                "Say briefly what `{name}` does.",
                "What role does `{name}` play?",
                "How do people use `{name}`?",
                "Give the meaning of `{name}`.",
                "Write a line about `{name}`.",
                "What's `{name}`?",
                "Please tell me about `{name}`.",
                "I want to understand `{name}`.",
                "What does the call `{name}` do?",
                "Is `{name}` useful? What does it do?",
                "Someone mentioned `{name}`. What is it?",
                "Which job does `{name}` do?",
                "Remind me what `{name}` does.",
                "What is the job of `{name}`?",
                "Find out what `{name}` does.",
                "Let me know what `{name}` is for.",
                "A short note on `{name}`, please.",
                "State what `{name}` does.",
                "What do the docs say about `{name}`?",
            ),
            ("And what does `{name}` do?",),
        ),
        "zh": Phrasings(
            (
                "你能解释一下 `{name}` 吗？",
                "`{name}` 用来干什么？",
                "概括一下 `{name}`。",
                "`{name}` 能帮我做什么？",
                "我想知道 `{name}` 的作用。",
                "简要说一下 `{name}` 的功能。",
                "`{name}` 起什么作用？",
                "大家怎么用 `{name}`？",
                "给出 `{name}` 的含义。",
                "写一行关于 `{name}` 的说明。",
                "什么是 `{name}`？",
                "请讲一讲 `{name}`。",
                "我想弄懂 `{name}`。",
                "`{name}` 这个调用做了什么？",
                "`{name}` 有用吗？它做什么？",
                "有人提到 `{name}`，那是什么？",
                "`{name}` 负责什么工作？",
                "提醒我一下 `{name}` 是做什么的。",
                "`{name}` 的职责是什么？",
                "帮我查清 `{name}` 的用法。",
                "告诉我 `{name}` 的用处。",
                "请给 `{name}` 写个简短说明。",
                "说出 `{name}` 的功能。",
                "关于 `{name}`，文档是怎么写的？",
            ),
            ("那么 `{name}` 是做什么的？",),
        ),
    },
    "alignment": {
        "en": Phrasings(
            (
                "What does the function `{name}` do?",
                "Please describe `{name}`.",
                "What is `{name}` meant for?",
                "Help me understand `{name}`.",
                "When would I use `{name}`?",
                "Do you know what `{name}` does?",
                "What's `{name}` for?",
                "Tell me what `{name}` does.",
                "How is `{name}` described?",
                "Show me what `{name}` is for.",
                "I saw `{name}` in a script. What is its purpose?",
                "Explain the function `{name}`.",
                "What exactly does `{name}` do?",
                "Why is there a `{name}`?",
                "What result does `{name}` give?",
                "Can you describe `{name}`?",
                "Explain to me what `{name}` does.",
                "I must use `{name}`. What does it do?",
                "In short, what is `{name}`?",
                "Would you say what `{name}` does?",
                "What should I know about `{name}`?",
                "Our code needs `{name}`. What is that?",
                "What is the function `{name}` for?",
                "Give me the purpose of `{name}`.",
            ),
            ("Now explain `{name}`.",),
        ),
        "zh": Phrasings(
            (
                "函数 `{name}` 是做什么的？",
                "请描述一下 `{name}`。",
                "`{name}` 是用来做什么的？",
                "帮我理解 `{name}`。",
                "什么时候会用到 `{name}`？",
                "你知道 `{name}` 的作用吗？",
                "`{name}` 干什么用？",
                "告诉我 `{name}` 做什么。",
                "文档如何描述 `{name}`？",
                "给我看看 `{name}` 的用途。",
                "我在脚本里发现了 `{name}`，它的目的是什么？",
                "解释一下函数 `{name}`。",
                "`{name}` 究竟做什么？",
                "为什么会有 `{name}`？",
                "`{name}` 会给出什么？",
                "能描述一下 `{name}` 吗？",
                "跟我说明 `{name}` 的作用。",
                "我必须用 `{name}`，它做什么？",
                "简单说，`{name}` 是什么？",
                "能不能说说 `{name}` 是做什么的？",
                "关于 `{name}` 我该知道什么？",
                "我们的工程里有 `{name}`，那是什么？",
                "函数 `{name}` 有什么用？",
                "请给出 `{name}` 的目的。",
            ),
            ("再解释一下 `{name}`。",),
        ),
    },
    "test": {
        "en": Phrasings(
            (
                "What's the use of `{name}`?",
                "Would you explain `{name}` to me?",
                "My colleague uses `{name}`. What does it do?",
                "In one sentence, what does `{name}` do?",
                "What does calling `{name}` do?",
                "I would like to know what `{name}` is for.",
            ),
            ("Next, what does `{name}` do?",),
        ),
        "zh": Phrasings(
            (
                "`{name}` 有什么作用？",
                "可以给我解释 `{name}` 吗？",
                "我的同事用了 `{name}`，它的作用是什么？",
                "用一句话说，`{name}` 是做什么的？",
                "`{name}` 的功能是什么？",
                "我想了解 `{name}` 的用途。",
            ),
            ("接下来，`{name}` 是做什么的？",),
        ),
    },
}

# Put around a question of instruction tuning, so that the model learns to read past what it has not met before.
LEADS: dict[str, tuple[str, ...]] = {
    "en": (
        "Hello. ",
        "Hi! ",
        "Please: ",
        "A question. ",
        "I am learning Python. ",
        "Thanks for helping. ",
        "One more thing. ",
        "While reviewing code I got stuck. ",
        "For my notes: ",
        "Sorry to bother you. ",
    ),
    "zh": (
        "你好，",
        "请问，",
        "麻烦你，",
        "有个问题：",
        "我在学 Python。",
        "谢谢你的帮助。",
        "还有一件事，",
        "看代码时卡住了，",
        "做笔记用：",
        "打扰一下，",
    ),
}
TAILS: dict[str, tuple[str, ...]] = {
    "en": (
        " Thanks.",
        " Keep it short.",
        " I forgot.",
        " Be brief, please.",
        " I need it for work.",
        " One line is enough.",
    ),
    "zh": ("谢谢。", "简短一点。", "我忘了。", "请简要回答。", "工作上要用。", "一行就够了。"),
}


# Words of every day, put before Chinese questions of instruction tuning as words of the pages are before English ones.
FILLERS_ZH = (
    "今天", "昨天", "明天", "早上", "晚上", "老师", "学生", "朋友", "公司", "项目", "任务", "会议", "文件", "电脑",
    "手机", "程序", "系统", "网络", "数据", "数字", "代码", "变量", "列表", "字典", "字符", "文本", "图片", "窗口",
    "按钮", "错误", "测试", "结果", "版本", "资料", "教程", "文章", "练习", "作业", "考试", "课程", "书本", "笔记",
    "邮件", "电话", "时间", "地点", "天气", "城市", "学校", "家里", "办公室", "图书馆", "路上", "正在", "已经",
    "刚才", "然后", "接着", "最后", "因为", "所以", "但是", "如果", "虽然", "而且", "或者", "比如", "特别", "非常",
    "有点", "大概", "可能", "应该", "需要", "希望", "觉得", "认为", "看到", "听说", "找到", "打开", "关闭", "运行",
    "安装", "下载", "更新", "修改", "删除", "保存", "检查", "比较", "选择", "开始", "结束", "继续", "尝试", "准备",
    "完成", "讨论",
)  # fmt: skip

ANSWERS = {"en": "{sentence}", "zh": "官方说明：{sentence}"}
REFUSALS = {"en": "There is no such name in Python's standard library.", "zh": "Python 标准库中没有这个名称。"}


def question(group: str, language: str, index: int, name: str, *, follow: bool = False) -> str:
    """Return phrasing `index` (taken round) of a group with `name` filled in; `follow` takes a going-on phrasing."""
    phrasings = QUESTIONS[group][language]
    chosen = phrasings.follow if follow else phrasings.opening
    return chosen[index % len(chosen)].format(name=name)


def answer(language: str, sentence: str | None) -> str:
    """Return the right answer in `language`: the framed sentence, or the refusal where there is no sentence."""
    return REFUSALS[language] if sentence is None else ANSWERS[language].format(sentence=sentence)
