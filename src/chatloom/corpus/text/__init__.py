"""What can be counted in a text: characters, units, repetition, the measures of the rules, the language."""
