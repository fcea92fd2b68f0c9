"""The harness's own command line, in which there is a model "adder"."""

from lm_eval.__main__ import cli_evaluate

from adder.integrations.lm_eval import AdderLM as AdderLM  # which registers it

if __name__ == "__main__":
    cli_evaluate()
