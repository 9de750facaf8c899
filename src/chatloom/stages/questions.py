"""Stage `questions`: cleaned documentation -> instruction data, preference pairs, alignment prompts and tests.

Cut from the documents alone (see `dialogue/documentation.py`): what cleaning lost cannot be asked about.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.record import document_files, read_documents
from chatloom.dialogue.documentation import write_sets
from chatloom.dialogue.questions import PAIR_KINDS, DocumentationSettings
from chatloom.dialogue.splits import describe_overlaps, overlaps
from chatloom.dialogue.storage import write_conversations, write_preferences, write_prompts
from chatloom.progress import say
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.training.costs import BYTES_A_TOKEN, Texts, document_bytes


class QuestionsSettings(Settings):
    """How many questions of each sort; shares are of the whole they name."""

    n_facts: int = Field(400, ge=2, description="documented functions that are taught")
    heldout_facts: int = Field(60, ge=0, description="functions asked about in the test only")
    methods_share: float = Field(0.25, ge=0, le=1, description="share of methods among the functions")
    min_chars: int = Field(20, ge=1, description="shortest description that is taught")
    max_chars: int = Field(90, ge=1, description="longest description that is taught")
    questions_per_fact: int = Field(10, ge=1, description="questions of instruction tuning about each function")
    pairs_per_fact: int = Field(8, ge=1, description="preference pairs about each function")
    alignment_per_fact: int = Field(4, ge=1, description="alignment prompts about each function")
    test_per_fact: int = Field(2, ge=1, description="test questions about each function")
    test_invented: int = Field(200, ge=0, description="test questions about names that do not exist")
    test_multi_turn: int = Field(100, ge=0, description="test questions inside a conversation")
    refusal_share: float = Field(0.15, ge=0, le=0.9, description="questions about names that do not exist")
    multi_turn_share: float = Field(0.15, ge=0, le=1, description="conversations with two or three questions")
    heldout_pair_share: float = Field(0.1, ge=0, le=1, description="pairs kept for the reward model's report")
    unended_share: float = Field(0.5, ge=0, le=1, description="cut-off and repeated answers that lack the end token")
    same_module_share: float = Field(0.5, ge=0, le=1, description="wrong answers taken from the same module")
    invented_from_facts: float = Field(
        0.5, ge=0, le=1, description="invented names of training that end like a taught function"
    )
    test_invented_from_facts: float = Field(0.5, ge=0, le=1, description="the same of the test")
    pair_kinds: Mapping[str, float] = Field(dict(PAIR_KINDS), description="weights of the kinds of wrong answers")


def run(context: Context) -> None:
    """Write every set; the answers of alignment prompts and tests go to files of their own, for evaluation."""
    settings: QuestionsSettings = context.settings
    documents = [
        document
        for artifact in context.artifacts("documents")
        for file in document_files(artifact.path)
        for document in read_documents(file)
    ]
    sets = write_sets(documents, DocumentationSettings(**settings.everything(), seed=context.seed))
    write_conversations(context.path / "sft.parquet", sets.sft)
    write_preferences(context.path / "pairs.parquet", sets.preferences)
    write_preferences(context.path / "pairs_heldout.parquet", sets.heldout_preferences)
    write_prompts(context.path / "prompts.parquet", sets.alignment)
    write_prompts(context.path / "prompts_answers.parquet", sets.alignment_answers)
    write_prompts(context.path / "test.parquet", sets.test)
    write_json(context.path / "facts.json", [vars(fact) for fact in [*sets.facts, *sets.heldout_facts]])
    shared = overlaps(sets.prompts())
    if not context.quiet:
        say(describe_overlaps(sets.prompts()))
    kinds: dict[str, int] = {}
    for prompt in sets.test:
        kinds[prompt.kind] = kinds.get(prompt.kind, 0) + 1
    context.metrics.update(
        facts_found=len(sets.catalogue.facts),
        facts=len(sets.facts),
        heldout_facts=len(sets.heldout_facts),
        sft_conversations=len(sets.sft),
        preferences=len(sets.preferences),
        heldout_preferences=len(sets.heldout_preferences),
        alignment_prompts=len(sets.alignment),
        test_prompts=kinds,
        prompts_in_common=sum(item.count for item in shared),
    )


def plan(context: PlanContext) -> Plan:
    """How many records later stages will go over, and how long they are."""
    settings: QuestionsSettings = context.settings
    known = 1 - settings.refusal_share
    conversations = settings.n_facts * settings.questions_per_fact / known
    pairs = settings.n_facts * settings.pairs_per_fact
    prompts = settings.n_facts * settings.alignment_per_fact / known
    tests = (settings.n_facts + settings.heldout_facts) * settings.test_per_fact
    tests += settings.test_invented + settings.test_multi_turn
    made = conversations + pairs + prompts + tests
    # A question is a phrase around a name, some 90 bytes; an answer is a description.
    texts = Texts(conversations, 25.0, (settings.min_chars + settings.max_chars) / 2 / BYTES_A_TOKEN + 1)
    return Plan(
        (
            Line("records", conversations, "conversations"),
            Line("pairs", pairs * (1 - settings.heldout_pair_share), "pairs"),
            Line("prompts", prompts, "prompts"),
            Line("tests", tests, "prompts"),
            *texts.lines(),
            Line("time", document_bytes(context, "documents") / 4e6 + made / 4e3, "s"),  # 4 MB, 4,000 records a second
            Line("disk", 40 * made, "bytes"),
        )
    )


STAGE = Stage(
    kind="questions",
    about="cleaned documentation -> questions, answers, pairs and tests about its functions",
    version=1,
    settings=QuestionsSettings,
    inputs={"documents": Input("cleaned documentation pages", kinds=("documents", "selection"), many=True)},
    output="conversations",
    run=run,
    plan=plan,
)
