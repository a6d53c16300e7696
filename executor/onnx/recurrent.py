"""ONNX recurrent layers, one step of time after another, so that each product is counted.

    x_t W^T (all steps at once) ─┐
    h_{t-1} R^T ─────────────────┴─→ gates ─→ h_t

Source: ONNX operator schemas of LSTM, GRU and RNN, https://onnx.ai/onnx/operators.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from executor.onnx.rule import Call, Rule, Rules

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "softsign": F.softsign,
    "softplus": F.softplus,
}  # fmt: skip


class _Weights(NamedTuple):
    """Of one direction: input (gates*h, x), recurrent (gates*h, h), their biases, peepholes."""

    w: Tensor
    r: Tensor
    w_bias: Tensor | None
    r_bias: Tensor | None
    peepholes: Tensor | None


Cell = Callable[[Call, Tensor, list[Tensor], _Weights, list[Activation]], list[Tensor]]


def _lstm(
    call: Call, x: Tensor, state: list[Tensor], weights: _Weights, act: list[Activation]
) -> list[Tensor]:
    """Gates in the order input, output, forget, cell; state: hidden, cell."""
    hidden, cell = state
    gates = x + F.linear(hidden, weights.r, weights.r_bias)
    i, o, f, c = gates.chunk(4, -1)
    if weights.peepholes is not None:
        p_i, p_o, p_f = weights.peepholes.chunk(3, -1)
        new = act[0](f + p_f * cell) * cell + act[0](i + p_i * cell) * act[1](c)
        o = o + p_o * new
    else:
        new = act[0](f) * cell + act[0](i) * act[1](c)
    return [act[0](o) * act[2](new), new]


def _gru(
    call: Call, x: Tensor, state: list[Tensor], weights: _Weights, act: list[Activation]
) -> list[Tensor]:
    """Gates in the order update, reset, hidden."""
    hidden = state[0]
    x_z, x_r, x_h = x.chunk(3, -1)
    if call.get("linear_before_reset", 0):
        r_z, r_r, r_h = F.linear(hidden, weights.r, weights.r_bias).chunk(3, -1)
        update, reset = act[0](x_z + r_z), act[0](x_r + r_r)
        new = act[1](x_h + reset * r_h)
    else:
        n = hidden.shape[-1]
        bias = weights.r_bias
        first, last = (None, None) if bias is None else (bias[: 2 * n], bias[2 * n :])
        r_z, r_r = F.linear(hidden, weights.r[: 2 * n], first).chunk(2, -1)
        update, reset = act[0](x_z + r_z), act[0](x_r + r_r)
        new = act[1](x_h + F.linear(reset * hidden, weights.r[2 * n :], last))
    return [(1 - update) * new + update * hidden]


def _rnn(
    call: Call, x: Tensor, state: list[Tensor], weights: _Weights, act: list[Activation]
) -> list[Tensor]:
    return [act[0](x + F.linear(state[0], weights.r, weights.r_bias))]


def _direction(
    call: Call, cell: Cell, x: Tensor, state: list[Tensor], weights: _Weights,
    act: list[Activation], is_reverse: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """All steps of one direction: hidden states (time, batch, hidden) and the last state."""
    inputs = F.linear(x, weights.w, weights.w_bias).unbind(0)
    hidden = []
    for step in reversed(inputs) if is_reverse else inputs:
        state = cell(call, step, state, weights, act)
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if is_reverse else hidden), state


def _check(call: Call, lengths: Any) -> None:
    refused = [key for key in ("clip", "input_forget") if call.get(key)]
    refused += ["activation_alpha"] if call.get("activation_alpha") else []
    refused += ["sequence_lens"] if lengths is not None else []
    if refused:
        raise ValueError(f"{call.op} with {', '.join(refused)} is not known; export without")


def _layer(cell: Cell, num_states: int, defaults: list[str]) -> Rule:
    """A layer of one or two directions; inputs X W R B lengths h_0 (c_0, P)."""

    def run(call: Call, *given: Any) -> tuple[Tensor, ...]:
        x, w, r, bias, lengths, h_0, c_0, peepholes = (*given, *[None] * 8)[:8]
        _check(call, lengths)
        x = x.transpose(0, 1) if call.get("layout", 0) else x
        names = [name.lower() for name in call.get("activations", defaults * w.shape[0])]
        act = [ACTIVATIONS[name] for name in names]
        outputs, lasts = [], []
        for d in range(w.shape[0]):
            zeros = x.new_zeros(x.shape[1], r.shape[2])
            starts = [h_0, c_0][:num_states]
            at = 1 if call.get("layout", 0) else 0
            state = [zeros if s is None else s.select(at, d) for s in starts]
            half = w.shape[1]
            of_w, of_r = (None, None) if bias is None else (bias[d, :half], bias[d, half:])
            weights = _Weights(w[d], r[d], of_w, of_r, None if peepholes is None else peepholes[d])
            is_reverse = d == 1 or call.get("direction", "forward") == "reverse"
            some = act[d * len(defaults) :]
            hidden, last = _direction(call, cell, x, state, weights, some, is_reverse)
            outputs.append(hidden)
            lasts.append(last)
        return _laid_out(call, outputs, lasts)

    return Rule(run)


def _laid_out(call: Call, outputs: list[Tensor], lasts: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """Y (time, directions, batch, hidden) and the last states; batch first where asked."""
    is_batch_first = bool(call.get("layout", 0))
    y = torch.stack(outputs, 1)
    states = [torch.stack(list(s), 1 if is_batch_first else 0) for s in zip(*lasts, strict=True)]
    return (y.permute(2, 0, 1, 3) if is_batch_first else y, *states)


RULES: Rules = {
    "LSTM": _layer(_lstm, 2, ["sigmoid", "tanh", "tanh"]),
    "GRU": _layer(_gru, 1, ["sigmoid", "tanh"]),
    "RNN": _layer(_rnn, 1, ["tanh"]),
}
