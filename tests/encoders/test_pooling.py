import math

import pytest
import torch
import torch.nn.functional as F

from medvlp.encoders.pooling import AttentionPool, pool_tokens
from medvlp.encoders.projection import TextProjector, map_projector, mlp_projector


def pool(dim=12, grid=4, heads=2, seed=0, **options):
    torch.manual_seed(seed)
    made = AttentionPool(dim, grid, heads, **options)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.double()


def features(batch=3, dim=12, grid=4):
    return torch.randn(batch, dim, grid, grid, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_three_heads_of_43_on_128_channels():
    made = AttentionPool(128, 7, 3)
    pooled, attention = made(torch.randn(2, 128, 7, 7))
    assert made.head_dim == 43
    assert made.in_proj.weight.shape == (3 * 129, 128)
    assert pooled.shape == (2, 128)
    assert attention.shape == (2, 3, 50)
    assert made.attention_grid(attention, 7, 7).shape == (2, 3, 7, 7)


@pytest.mark.parametrize("query", ["mean", "learned"])
@pytest.mark.parametrize("heads", [1, 2, 3, 5])
def test_attention_is_a_distribution(query, heads):
    _, attention = pool(heads=heads, query=query)(features())
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, heads, dtype=torch.float64))
    assert attention.min() > 0
    assert pool(heads=heads).attention_grid(attention, 4, 4).sum((2, 3)).max() < 1


@pytest.mark.parametrize("query", ["mean", "learned"])
def test_against_torch_multihead_attention(query):
    made, x = pool(query=query), features()
    reference = torch.nn.MultiheadAttention(12, 2, batch_first=True).double()
    reference.load_state_dict(
        {
            "in_proj_weight": made.in_proj.weight,
            "in_proj_bias": made.in_proj.bias,
            "out_proj.weight": made.out_proj.weight,
            "out_proj.bias": made.out_proj.bias,
        }
    )
    cells = x.flatten(2).transpose(1, 2)
    first = cells.mean(1, keepdim=True) if query == "mean" else made.cls_token.expand(3, 1, -1)
    tokens = torch.cat([first, cells], 1) + made.positional_embedding
    out, weights = reference(tokens[:, :1], tokens, tokens, average_attn_weights=False)
    pooled, attention = made(x)
    torch.testing.assert_close(pooled, made.c_proj(out[:, 0]))
    torch.testing.assert_close(attention, weights[:, :, 0])


def token_0(made, x):
    """Token 0 taken to the space of the pooled vector, as project_cells takes the cells."""
    inner = made.heads * made.head_dim
    value = F.linear(made._tokens(x)[:, 0], made.in_proj.weight[2 * inner :], made.in_proj.bias[2 * inner :])
    return made.c_proj(made.out_proj(value))


@pytest.mark.parametrize("query", ["mean", "learned"])
def test_one_head_pools_to_the_weighted_mean_of_the_projected_cells_and_token_0(query):
    made, x = pool(heads=1, query=query), features()
    pooled, attention = made(x)
    cells = made.project_cells(x).flatten(2)
    mean = attention[:, 0, :1] * token_0(made, x) + (attention[:, 0, None, 1:] * cells).sum(-1)
    torch.testing.assert_close(pooled, mean)


def test_heads_that_agree_pool_to_the_weighted_mean_too():
    made, x = pool(heads=3), features()
    with torch.no_grad():
        for part in range(2):  # queries and keys; each head still has its own values
            for parameter in (made.in_proj.weight, made.in_proj.bias):
                rows = parameter[part * 12 : (part + 1) * 12]
                rows[4:8], rows[8:] = rows[:4].clone(), rows[:4].clone()
    pooled, attention = made(x)
    torch.testing.assert_close(attention[:, 1], attention[:, 0])
    cells = made.project_cells(x).flatten(2)
    mean = attention[:, 0, :1] * token_0(made, x) + (attention[:, 0, None, 1:] * cells).sum(-1)
    torch.testing.assert_close(pooled, mean)


def test_heads_that_differ_weight_their_own_channels():
    made, x = pool(heads=3), features()
    pooled, attention = made(x)
    values = F.linear(made._tokens(x), made.in_proj.weight[24:], made.in_proj.bias[24:]).view(3, 17, 3, 4)
    own = torch.einsum("bht,bthd->bhd", attention, values).flatten(1)
    torch.testing.assert_close(pooled, made.c_proj(made.out_proj(own)))


def test_other_grids_interpolate_the_positions():
    made = pool(grid=4)
    for size in (2, 4, 6):
        pooled, attention = made(features(grid=size))
        assert pooled.shape == (3, 12)
        assert attention.shape == (3, 2, 1 + size * size)
        assert made.project_cells(features(grid=size)).shape == (3, 12, size, size)
    table = made.positional_embedding[1:].T.reshape(1, 12, 4, 4)
    expected = F.interpolate(table, (6, 6), mode="bicubic", align_corners=False)[0].flatten(1).T
    torch.testing.assert_close(made._positions(6, 6)[1:], expected)
    assert torch.equal(made._positions(6, 6)[0], made.positional_embedding[0])


def test_output_width_is_free():
    made = AttentionPool(16, 3, 4, out_dim=5)
    assert made(torch.randn(2, 16, 3, 3))[0].shape == (2, 5)
    assert made.project_cells(torch.randn(2, 16, 3, 3)).shape == (2, 5, 3, 3)


@pytest.mark.parametrize("how", ["cls", "mean", "max"])
def test_pool_tokens_ignores_padding(how):
    hidden = torch.randn(3, 6, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    noisy = torch.where(mask[:, :, None].bool(), hidden, 1e4 * torch.randn(3, 6, 5))
    pooled = pool_tokens(noisy, mask, how)
    for i, length in enumerate([6, 3, 1]):
        real = hidden[i, :length]
        want = {"cls": real[0], "mean": real.mean(0), "max": real.amax(0)}[how]
        torch.testing.assert_close(pooled[i], want)


def test_report_scope_is_independent_of_padding_and_token_scope_is_not():
    torch.manual_seed(0)
    hidden = torch.randn(4, 5, 8)
    padded = torch.cat([hidden, torch.randn(4, 11, 8)], 1)
    for scope, same in (("report", True), ("tokens", False)):
        projector = TextProjector(8, 6, scope).train()
        short, long = (projector(h, h[:, 0]) for h in (hidden, padded))
        assert short.shape == (4, 6)
        assert torch.allclose(short, long) == same
        # In evaluation the statistics are fixed, and the released code too is independent of padding.
        projector.eval()
        torch.testing.assert_close(projector(hidden, hidden[:, 0]), projector(padded, padded[:, 0]))


def test_token_scope_takes_its_statistics_over_every_position():
    projector = TextProjector(8, 6, "tokens").train()
    hidden = torch.randn(4, 5, 8)
    projector(hidden, hidden[:, 0])
    inner = projector.layers[0](hidden).reshape(20, -1)
    torch.testing.assert_close(projector.layers[1].running_mean, 0.1 * inner.mean(0))


def test_projectors_have_the_layers_of_their_papers():
    convirt, g2d = mlp_projector(8, 4, 3), map_projector(8, 4)
    assert [type(m).__name__ for m in convirt] == ["Linear", "ReLU", "Linear"]
    assert [type(m).__name__ for m in g2d] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    assert set(g2d.state_dict()) == {
        *("0.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked", "3.weight")
    }
    assert g2d(torch.randn(2, 8, 3, 3)).shape == (2, 4, 3, 3)
    assert math.isclose(sum(p.numel() for p in convirt.parameters()), 8 * 4 + 4 + 4 * 3 + 3)
