"""Benchmarks: grids of methods × tasks × fractions × seeds as jobs, and the tables of their results.

A grid (:mod:`~medvlp.benchmark.grid`) becomes jobs, a runner runs them, and their results are collected in one
JSON Lines file. Its rows are those of :mod:`medvlp.results` with one key more, ``benchmark``, a dictionary (None for
what does not apply):

============ =======================================================================================
key          meaning
============ =======================================================================================
grid         name of the grid
method       name of the method's row in the grid (not always the row's ``method``: g2d, g2d_decoder)
title        how tables print it
task         name of the task's column in the grid, such as linear_rsna
run          name of the combination of seeds
seeds        {"pretrain": seed of pre-training, "data": of the subset and its order, "head": of the run}
job          content hash of the job, and of the pre-training job whose encoder it used:
pretrain_job None for checkpoints and bare encoders
============ =======================================================================================

``predictions`` of such a row is relative to the folder of the collected file. Beside it lies ``grid.json``: the grid
as it was read, the jobs with their state, and what pre-training cost.
"""
