"""Wrong answers to lesson 05, and what the tests say of each."""

from lessons.kit.wrong import Wrong

WRONG = (
    Wrong(
        "g's own mean stays in",
        old="rstd * (g - g.mean(-1, keepdim=True) - normed",
        new="rstd * (g - normed",
        fails="05-backward-formula-test",
        says="once mean(g) is taken off",
    ),
    Wrong(
        "grad in the place of g",
        old="g = grad * (1 + scale[:, None])",
        new="g = grad",
        fails="05-backward-formula-test",
        says="g is grad * (1 + scale)",
    ),
    Wrong(
        "the mean square over the tile's width",
        old="b_rstd = tl.rsqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / D + EPS)",
        new="b_rstd = tl.rsqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / BLOCK_D + EPS)",
        fails="05-backward-kernel-test",
        says="means divide by D, not BLOCK_D",
    ),
    Wrong(
        "padding is minus the mean",
        old="tl.where(m_x, b_x - tl.sum(b_x, 1, keep_dims=True) / D, 0.0)",
        new="b_x - tl.sum(b_x, 1, keep_dims=True) / D",
        fails="05-backward-kernel-test",
        says="padded columns are 0 after centring",
    ),
    Wrong(
        "each chunk goes on to the sample's end",
        old="end = min(chunk * length + length, L)",
        new="end = L",
        fails="05-backward-kernel-test",
        says="a chunk ends where the next begins",
    ),
    Wrong(
        "the scale's gradient has the scale in it",
        old="b_moment += tl.sum(b_grad * b_normed",
        new="b_moment += tl.sum(b_grad * b_gain * b_normed",
        fails="05-backward-kernel-test",
        says="not g * n",
    ),
    Wrong(
        "the last chunk first",
        old="for chunk in range(CHUNKS):",
        new="for chunk in range(CHUNKS - 1, -1, -1):",
        fails="05-backward-function-test",
        says="in the order 0, 1, 2",
    ),
    Wrong(
        "a gradient with strides taken for contiguous",
        old="backward_chunks(grad.contiguous(), x",
        new="backward_chunks(grad, x",
        fails="05-backward-function-test",
        says="grad with strides",
    ),
    Wrong(
        "the scale's gradient without the scale's shape",
        old="d_scale.reshape(scale.shape)",
        new="d_scale",
        fails="05-backward-function-test",
        says="expected shape compatible with [2, 1, 48]",
    ),
)
