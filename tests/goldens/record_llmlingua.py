"""Records what the package `llmlingua` itself makes of texts, on a version of transformers that it
works on. Run from the repository's root in an environment of its own:

    pip install llmlingua==0.2.2 transformers==4.46.3 torch accelerate
    python tests/goldens/record_llmlingua.py

Nothing of LatentWire is imported. The causal model is the bundled receiver `llama`; the classifier
lies beside this file, of BERT's shape with random weights.
"""

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import transformers
from llmlingua import PromptCompressor
from tokenizers import Tokenizer

GOLDENS = Path(__file__).parent
CAUSAL = GOLDENS.parents[1] / "resources/receivers/llama"
CLASSIFIER = GOLDENS / "classifier"
TEXTS = (
    "Kanor works for Harbor Glass. The pet of Reran is a turtle. By trade Krapas is a miner. The "
    "instrument of Reran is the flute. Kanor was born in Foxford. Krapas keeps a dog.",
    "The birthplace of Hobel is Redgate. Hobel likes to cook onion stew. The year Dasen came was "
    "1851. Dasen plays the cello. What Hobel wears is blue, and what Dasen wears is not. The "
    "employer of Hobel is Atlas Steel, which pays well; Dasen works for nobody at all. In the "
    "evening they meet at the harbour, eat lemon pie and listen to a banjo.",
    "Émile wrote: 3.5 % of 1,200 boats (42!) sank near St. John's in 1907. Nobody knows why.",
)
QUESTIONS = ("What pet does Reran keep?", "What does Hobel like to cook?", "When did boats sink?")
RATES = (0.1, 0.25, 0.5, 0.75)


def open_compressor(folder: Path, **options: bool) -> PromptCompressor:
    """Opens a model whose tokenizer's class a later version of transformers has named."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        path = Path(copy) / "tokenizer_config.json"
        settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps(settings))
        # What counts tokens would be downloaded; as in LatentWire the receiver does instead.
        tokenizer = Tokenizer.from_file(str(CAUSAL / "tokenizer.json"))
        counter = SimpleNamespace(
            encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        )
        with patch("llmlingua.prompt_compressor.tiktoken.encoding_for_model", return_value=counter):
            return PromptCompressor(copy, device_map="cpu", model_config={}, **options)


def main() -> None:
    causal = open_compressor(CAUSAL)
    classifier = open_compressor(CLASSIFIER, use_llmlingua2=True)
    classifier.model_name = "bert-base-multilingual-cased"
    records = []
    for text, question in zip(TEXTS, QUESTIONS, strict=True):
        length = causal.get_token_length(text, add_special_tokens=True)
        for rate in RATES:
            whole = {
                "target_token": max(1.0, rate * length),
                "iterative_size": length,
                "concate_question": False,
            }
            plain = causal.compress_prompt([text], **whole)
            aware = causal.compress_prompt(
                [text],
                question=question,
                rank_method="longllmlingua",
                condition_in_question="after_condition",
                condition_compare=True,
                **whole,
            )
            words = classifier.compress_prompt_llmlingua2([text], rate=rate)
            records.append(
                {
                    "text": text,
                    "question": question,
                    "rate": rate,
                    "llmlingua": plain["compressed_prompt"],
                    "llmlingua_question": aware["compressed_prompt"],
                    "llmlingua2": words["compressed_prompt"],
                }
            )
    outcome = {"transformers": transformers.__version__, "records": records}
    (GOLDENS / "llmlingua.json").write_text(
        json.dumps(outcome, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
