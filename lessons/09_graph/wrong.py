"""Mistakes that learners make in this lesson, each with the cell that must catch it and what the message must say."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "v1 forgets who else uses the norm",
        old="users = [*norm.users, *(user for mul in norm.users for user in mul.users)]",
        new="mul = next(user for user in norm.users if user.target == aten.mul.Tensor); users = [mul, *mul.users]",
        fails="09-graph-find-test",
        says="count the users",
    ),
    Wrong(
        "v1 takes the gain for the second factor always",
        old="(gain,) = (arg for arg in users[0].args if arg is not norm)",
        new="gain = users[0].args[1]",
        fails="09-graph-find-test",
        says="either order of arguments",
    ),
    Wrong(
        "v2 has one order of arguments",
        old="in product((1, -1), repeat=2):",
        new="in product((1,), repeat=2):",
        fails="09-graph-fuse-test",
        says="the other orders of arguments",
    ),
    Wrong(
        "v2 asks nothing about shapes",
        old="return len(x) == 3 and scale == shift == (x[0], 1, x[2])",
        new="return len(x) == 3",
        fails="09-graph-fuse-test",
        says="scale is (B, L, D) there",
    ),
    Wrong(
        "v2 bakes the usual eps in",
        old="pattern, FUSED, match_filters",
        new="pattern, lambda x, scale, shift, shape, eps: adaln(x, scale, shift, 1e-6), match_filters",
        fails="09-graph-fuse-test",
        says="eps is an argument of the pattern",
    ),
    Wrong(
        "the comparison sees outputs only",
        old='return {"output": out.detach()} | {',
        new='return {"output": out.detach()} or {',
        fails="09-graph-verify-test",
        says="it spoils the gradient",
    ),
    Wrong(
        "the comparison stops at the first set",
        old="for inputs in input_sets:",
        new="for inputs in input_sets[:1]:",
        fails="09-graph-verify-test",
        says="it spoils the output",
    ),
    Wrong(
        "a spoiled graph is handed out",
        old='return untouched, f"{name} differs"',
        new='return candidate, f"{name} differs"',
        fails="09-graph-verify-test",
        says="the untouched graph",
    ),
)
