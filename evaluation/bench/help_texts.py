"""What `--help` says of each benchmark."""

DESCRIPTION = """\
Time the fused tree against vanilla PyTorch on this GPU, after checking every contender against fp64."""

OPS = """\
Time every fused op against vanilla PyTorch, eager and compiled, called eagerly and replayed from a CUDA graph, all
contenders of a case in turns. Outputs and gradients are checked against fp64 first."""

STACK = """\
Time the forward of the whole model, without gradients, or with --backward forward and backward for all gradients, all
contenders of a case in turns:

  eager            the vanilla tree, called as is
  eager_graph      the same, replayed from a CUDA graph
  compiled         the vanilla tree under torch.compile, called as is
  compiled_graph   the same, replayed from a CUDA graph
  max_autotune     the vanilla tree under torch.compile, max-autotune, replayed from a CUDA graph
  fused            the fused tree, called as is
  fused_graph      the same, replayed from a CUDA graph

Weights and inputs are drawn fresh, and outputs checked against the vanilla tree in fp64 first. Recorded beside the
times are the errors, the peak memory of eager and fused, what fused chose and launched, and the floor: the least time
that a call's operations, bytes and exponentials take. A contender that does not compile is named, with its reason.
There is a case for each batch and dtype; the record is written after each.

  python -m evaluation.bench stack --output stack.json
  python -m evaluation.bench stack --batch 1,128 --dtype bfloat16,tf32 --contenders max_autotune,fused_graph
  python -m evaluation.bench stack --batch 8 --masked --dim 256 --length 1024 --budget-s 300
  python -m evaluation.bench stack --backward --batch 32,128 --contenders eager,compiled_graph,fused_graph"""

SIZES = """\
Time the forward of models of many sizes, without gradients, in a CUDA graph: the fused tree against the vanilla one
under torch.compile, in turns, both checked against the vanilla tree in fp64 first. Each option that takes a list is an
axis of the grid; F is 4 times D. The cells are taken in an order (a Sobol sequence's) of which every beginning is
spread over the grid, so that a run cut short by --cells or --budget-s has seen some of everything.

Recorded of each cell: both times round by round, both errors, and which tier of the fused tree took it, as its explain
tells. A cell whose outputs are wrong, or that does not fit the GPU, is named with its reason, and the others go on.
The record is written after each cell, and names those that were not begun.

  python -m evaluation.bench sizes --budget-s 600 --output sizes.json
  python -m evaluation.bench sizes --dim 80,128 --head-dim 16 --length 186 --context 0,64 --dtype bfloat16"""

TUNE = """\
Time other tiles beside those of the fused tree's tuning tables, for sizes of your choice, and say which are fastest on
this GPU. It writes into no table: it prints the entry to write. For each op, dtype and batch:

  1. The op runs once with the table's tiles, which tells what was asked of the table and what it gave.
  2. Other tiles are tried, those first that differ from the table's in the fewest numbers. Each must compile, and its
     outputs, in memory filled with NaN, be about as close to fp64 as the table's. What is not is named with its
     reason, and never timed.
  3. All that are left are timed in turns, round by round, each in a CUDA graph.

The fastest is worth an entry where its median is below the table's by more than either's quartile distance.
stack_rows and stack_attention are timed as part of the whole model's forward, the other ops alone, several calls to
a graph.

  python -m evaluation.bench tune --op joint_attention,norm_adaln --batch 1,32 --output tune.json
  python -m evaluation.bench tune --op stack_rows --batch 128 --budget-s 180"""

SHORT = {  # what makes the exit code 1
    "ops": "the fused op is somewhere slower than torch.compile, or short of the copy bandwidth",
    "stack": "fused_graph is somewhere slower than compiled_graph or max_autotune, or less accurate than eager",
    "sizes": "the fused tree is somewhere slower than torch.compile by more than 5 %, or cannot be measured",
    "tune": "other tiles than a table's are faster beyond the spread",
}

EXIT_CODES = """\
exit code:
  0    nowhere short
  1    {short};
       or a contender's outputs are wrong
  2    usage: a wrong option, or a tree or record that is not there
  3    nothing could be measured"""
