"""What is compressed."""


def with_question(context: str, question: str) -> str:
    """The source of a wire that compresses passage and question together."""
    return f"{context}\n{question}"
