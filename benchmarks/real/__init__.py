"""A real model made safe, and what that costs it: SmolLM2-135M-Instruct, before and after, on what no training saw.

    python -m benchmarks.real --model DIR --data DIR        # `make real MODEL=DIR DATA=DIR`; stopped, it goes on

prompts.py asks; recipes.py lists what is compared; __main__.py runs align.respond, align.pairs, train.py and eval.py, each
as a command that it prints; measure.py adds divergence and perplexity; words.py is the second judge; table.py prints.
"""
