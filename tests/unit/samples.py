"""An untrained pocket receiver, and a few questions for it."""

import torch

from latentwire.config import Experiment
from latentwire.receivers.pretrain import RECIPES, make_tokenizer
from latentwire.receivers.prompt import Prompt
from latentwire.receivers.receiver import Receiver

QUESTIONS = [
    ["Where was Ada born?", "Who does Bo work for?", "What pet does Ada keep?"],
    ["When did Ceca arrive?"],
    ["What is the job of Dado?", "Which colour does Dado wear?"],
]
ANSWERS = [["Ashford", "Amber Bank", "dog"], ["1950"], ["baker", "red"]]
CONTEXTS = [
    "Ada was born in Ashford. Bo works for Amber Bank. The pet of Ada is a dog.",
    "Ceca arrived in 1950.",
    "Dado works as a baker. The colour of Dado is red. Über 🙂.",
]


def make_receiver(name: str) -> Receiver:
    """A pocket receiver with random weights, larger than usual so that its outputs vary."""
    experiment = Experiment()
    torch.manual_seed(0)
    tokenizer = make_tokenizer(RECIPES[name], experiment, seed=0)
    model = RECIPES[name].build(tokenizer)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    prompt = Prompt(tokenizer, experiment.prompt.template, experiment.prompt.anchor_text)
    return Receiver(name, model, tokenizer, prompt)
