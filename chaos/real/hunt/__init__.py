"""A hunt: clients at work on a mesh of real processes, faults from a seed, and then every database read and judged.

- `faults`:  the seeded schedule of what happens to processes and lines, and its execution
- `clients`: seeded clients that submit, cancel, replay and look, and write down what they were told
- `agents`:  the Python agent of a hunt, which leaves a line for each run before it does anything else
- `evidence`: what is left when all is quiet: rows, journals, answers, logs
- `verdict`: the promises, each a function from evidence to violations
- `drive`:   one hunt from start to verdict; `python -m chaos.real.hunt` runs many

The seed fixes what is tried and when. Real processes answer in their own time: the same seed makes a like run, not the
same one.
"""
