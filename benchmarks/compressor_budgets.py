"""Whether LLMLingua and LLMLingua-2 keep to their budgets, and how far they fill them.

    python benchmarks/compressor_budgets.py

500 passages of the pocket corpus at 4x, 8x and 16x, in the tokens of the bundled `llama`; LLMLingua
reads with that receiver, LLMLingua-2 with the classifier that the pocket experiment trained
(results/pocket/baselines/llmlingua2). Prints JSON.
"""

import json
from functools import partial
from statistics import fmean

from latentwire.baselines.compressed import open_compressor
from latentwire.baselines.llmlingua import fit_budget
from latentwire.config import Experiment, Method
from latentwire.data.pocket import full_length_passages
from latentwire.layout import Layout
from latentwire.receivers.loading import load_receiver

NUM_PASSAGES, RATIOS = 500, (4, 8, 16)


def main() -> None:
    experiment, layout = Experiment(), Layout("pocket")
    receiver = load_receiver(experiment, layout, "llama")
    source = full_length_passages("compressor budgets")
    texts = [next(source).context for _ in range(NUM_PASSAGES)]
    lengths = [len(ids) for ids in receiver.prompt.source_ids(texts)]

    def token_ids(text: str) -> list[int]:
        return receiver.prompt.source_ids([text])[0]

    for method in (Method.llmlingua, Method.llmlingua2):
        compress = open_compressor(experiment, layout, method, receiver).compress
        for ratio in RATIOS:
            budgets = [length // ratio for length in lengths]
            left = [
                fit_budget(partial(compress, text), token_ids, text, budget)
                for text, budget in zip(texts, budgets, strict=True)
            ]
            fills = [len(own.ids) / most for own, most in zip(left, budgets, strict=True)]
            outcome = {
                "method": method,
                "ratio": ratio,
                "over_budget": sum(fill > 1 for fill in fills),
                "mean_fill": round(fmean(fills), 4),
                "fell_back": sum(own.fell_back for own in left),
            }
            print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
