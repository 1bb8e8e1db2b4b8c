"""Mistakes that learners make in this lesson, each with the cell that must catch it and what the message must say."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "an expanded axis counted as if it were stored",
        old="count *= size if stride else min(size, 1)",
        new="count *= size",
        fails="01-cost-bytes-test",
        says="an axis of stride 0 counts once",
    ),
    Wrong(
        "four bytes for every dtype",
        old="count = t.element_size()",
        new="count = 4",
        fails="01-cost-bytes-test",
        says="element_size() is 2",
    ),
    Wrong(
        "the whole storage of a slice",
        old="    return count\n",
        new="    return t.untyped_storage().nbytes()\n",
        fails="01-cost-bytes-test",
        says="a slice: not the whole storage",
    ),
    Wrong(
        "a multiply-add taken for one operation",
        old="2 * rows * inputs * outputs)",
        new="rows * inputs * outputs)",
        fails="01-cost-floor-test",
        says="a multiply-add is two operations",
    ),
    Wrong(
        "the output's bytes forgotten",
        old="outputs * inputs + outputs + rows * outputs",
        new="outputs * inputs + outputs",
        fails="01-cost-floor-test",
        says="bytes of x, weight, bias and out, each once",
    ),
    Wrong(
        "clocks that wait for one another",
        old="    return times[bound], bound\n",
        new="    return sum(times.values()), bound\n",
        fails="01-cost-floor-test",
        says="not their sum",
    ),
    Wrong(
        "views counted as traffic",
        old="if not is_view:",
        new="if func:",
        fails="01-cost-traffic-test",
        says="an expanded y is read once",
    ),
    Wrong(
        "what is written forgotten",
        old="tree_leaves((args, kwargs, out))",
        new="tree_leaves((args, kwargs))",
        fails="01-cost-traffic-test",
        says="x + y reads x and y, and writes",
    ),
    Wrong(
        "lists of tensors overlooked",
        old="tree_leaves((args, kwargs, out))",
        new="(*args, out)",
        fails="01-cost-traffic-test",
        says="cat reads what is in its list",
    ),
)
