"""Compiled programs by hand: what they say, and what they take."""

# Instructions stand on one line, as XLA prints them.
# ruff: noqa: E501

import re

import numpy as np
import pytest

from rt2_jax.tpu import hlo_collectives, hlo_cost, hlo_counts, hlo_text
from rt2_jax.tpu.chips import Chip, Torus

# Round numbers: 1 TFLOP/s, 1 GB/s of HBM and of a whole axis, 1 GHz.
CHIP = Chip(
  peak_flops=1e12,
  hbm_bytes_per_s=1e9,
  hbm_bytes=1e9,
  axis_bytes_per_s=1e9,
  ring_every=4,
  clock_hz=1e9,
  dcn_bytes_per_s=1e6,
)
HOP = 1e-6


def torus(*lengths: int) -> Torus:
  return Torus(CHIP, [tuple(map(int, c)) for c in np.ndindex(*lengths)])


def module(entry: str, *others: str) -> str:
  """A module whose other computations stand before its entry."""
  blocks = [
    f"%{text.splitlines()[0]} (p: f32[]) -> f32[] {{\n"
    + text.split("\n", 1)[1].rstrip()
    + "\n}\n"
    for text in others
  ]
  body = "ENTRY %main (p: f32[]) -> f32[] {\n" + entry.strip("\n").rstrip()
  return "HloModule test, is_scheduled=true\n\n" + "\n".join(
    [*blocks, body + "\n}\n"]
  )


def predict(text: str, chips: Torus | None = None, estimates: bool = True):
  """Every program costs the same in the text of older and newer compilers."""
  chips = chips or torus(4, 4)
  cost = hlo_cost.predict(text, chips, estimates)
  assert hlo_cost.predict(newer(text), chips, estimates) == cost
  return cost


def newer(text: str) -> str:
  """Writes `%x#0` for every element of a tuple that has a name of its own."""
  # Names are unique in a computation only.
  return "".join(map(_newer, re.split(r"(?<=\n\}\n)", text)))


def _newer(computation: str) -> str:
  element = re.compile(
    r" *%([\w.\-]+) = [^\n]* get-tuple-element\((\S+)\), index=(\d+)\n"
  )
  while match := element.search(computation):
    name, of, index = match.groups()
    computation = computation.replace(match.group(), "")
    computation = re.sub(rf"%{name}(?![\w.\-])", f"{of}#{index}", computation)
  return computation


# `cycles` cycles of computation that touch nothing.
def work(name: str, cycles: int, operands: str = "") -> str:
  return (
    f"  %{name} = f32[]{{:T(128)}} fusion({operands}), kind=kLoop, "
    f'calls=%none, backend_config={{"estimated_cycles":"{cycles}"}}'
  )


def test_instructions_and_computations_are_read():
  read = hlo_text.parse(
    module(
      """
  %x = (bf16[8,319,72]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, /*index=2*/f32[4]{0}) parameter(0)
  ROOT %y.1 = bf16[8,319,72]{2,1,0:T(8,128)(2,1)S(1)} fusion(%x, %x), kind=kLoop, calls=%inner.2, metadata={op_name="jit(step)/mlp"}
""",
      "inner.2\n  ROOT %z = f32[2]{0} parameter(0)",
    )
  )
  assert read.entry == "main"
  x, y = read.computations["main"].values()
  assert [a.dims for a in x.arrays] == [(8, 319, 72), (), (4,)]
  assert (y.opcode, y.operands, y.called) == ("fusion", ("x", "x"), "inner.2")
  assert (y.is_root, y.source) == (True, "jit(step)/mlp")
  assert x.arrays[0].bytes == 8 * 319 * 72 * 2
  assert x.arrays[0].padded_bytes == 8 * 320 * 128 * 2
  assert x.arrays[0].in_hbm and not y.arrays[0].in_hbm
  assert read.root("inner.2").name == "z"


def test_a_text_that_is_no_module_is_refused():
  with pytest.raises(ValueError, match="without an ENTRY computation, expect"):
    hlo_text.parse("nothing")


def test_an_element_of_a_tuple_is_read_alike_in_both_texts():
  older = module("""
  %x = (f32[8,4]{1,0}, (bf16[6]{0}, /*index=1*/u32[]{:S(2)}), f32[3]{0}) parameter(0)
  %y = (bf16[6]{0}, u32[]{:S(2)}) get-tuple-element(%x), index=1
  %z = bf16[6]{0} get-tuple-element(%y), index=0
  %w = f32[3]{0} get-tuple-element(%x), index=2
  ROOT %sum = f32[6]{0} add(%z, %w), metadata={op_name="a#1"}
""")
  assert "(%x#1#0, %x#2)" in newer(older)
  for text in (older, newer(older), newer(older).replace("#1#0", "#{1,0}")):
    entry = hlo_text.parse(text).computations["main"]
    read = [entry[name] for name in entry["sum"].operands]
    assert {i.opcode for i in read} == {"get-tuple-element"}
    assert [i.arrays[0].dims for i in read] == [(6,), (3,)]
    assert [i.find(r"index=(\d+)") for i in read] == ["0", "2"]
    assert entry[read[0].operands[0]].operands == ("x",)
    total = hlo_counts.hbm_bytes(hlo_text.parse(text), "main", entry["sum"])
    assert total == 6 * 2 + 3 * 4 + 6 * 4


LOOP = """
  %t = (s32[], f32[4]) tuple(%a, %b)
  %w = (s32[], f32[4]) while(%t), condition=%cond, body=%body
"""
COND = """cond
  %s = (s32[], f32[4]) parameter(0)
  %n = s32[]{:T(128)} constant(18)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT"""
FUSED_COND = """cond
  %s = (s32[], f32[4]) parameter(0)
  %n = s32[]{:T(128)} constant(18)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] fusion(%i, %n), kind=kLoop, calls=%less"""
LESS = """less
  %l = s32[] parameter(0)
  %r = s32[] parameter(1)
  ROOT %c = pred[] compare(%l, %r), direction=LT"""


def body(step: int) -> str:
  return f"""body
  %s = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %by = s32[] constant({step})
  %next = s32[] add(%i, %by)
{work("layer", 1000)}
  ROOT %out = (s32[], f32[4]) tuple(%next, %layer)"""


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("cond", [(COND,), (FUSED_COND, LESS)])
def test_a_loop_counts_as_often_as_it_runs(cond, step):
  cost = predict(module(LOOP, *cond, body(step), "none\n  %x = f32[] iota()"))
  assert cost.step_s == pytest.approx(18 / step * 1e-6)
  assert cost.unknown_trip_counts == 0


def test_a_loop_of_unknown_length_is_reported():
  cond = COND.replace("constant(18)", "parameter(1)")
  cost = predict(module(LOOP, cond, body(1), "none\n  %x = f32[] iota()"))
  assert cost.step_s == pytest.approx(1e-6)
  assert cost.unknown_trip_counts == 1


@pytest.mark.parametrize(
  ("text", "group"),
  [
    ("replica_groups={{0,1,2},{3,4,5}}, x={}", [0, 1, 2]),
    ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", [0, 1, 2, 3]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", [0, 4]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", list(range(8))),
    ("replica_groups=mesh['a'=8] {'a':(2)2}, x", [0, 2]),
    ("replica_groups=mesh['a'=8] {'a':(1)2}, x", [0, 4]),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}, x",
      [3, 2],
    ),
    ("dimensions={0}", list(range(8))),
  ],
)
def test_replica_groups_in_every_syntax(text, group):
  assert hlo_collectives.replica_group(text, 8) == group


def test_a_ring_on_every_axis_of_the_torus():
  chips = torus(4, 8)
  row, column = range(8), range(0, 32, 8)
  assert chips.ring(row) == (1e9, pytest.approx(4 * HOP))
  assert chips.ring(column) == (1e9, pytest.approx(2 * HOP))
  # Both axes carry a group that spans both.
  assert chips.ring(range(32)) == (2e9, pytest.approx(6 * HOP))
  # Half an axis is no ring: data goes there and back.
  assert chips.ring(range(4)) == (0.5e9, pytest.approx(4 * HOP))
  # 6 is no multiple of 4: the axis is not closed.
  assert torus(6, 1).ring(range(6)) == (0.5e9, pytest.approx(6 * HOP))


@pytest.mark.parametrize(
  ("line", "volume"),
  [
    ("f32[4096]{0} all-gather(%x), dimensions={0}", 16384 * 15 / 16),
    ("f32[256]{0} reduce-scatter(%x), dimensions={0}", 1024 * 15),
    ("f32[4096]{0} all-reduce(%x), to_apply=%add", 2 * 16384 * 15 / 16),
    ("f32[4096]{0} all-to-all(%x), dimensions={0}", 16384 * 15 / 16 / 4),
    ("(bf16[64]{0}, f32[32]{0}) all-reduce(%x, %y)", 2 * 256 * 15 / 16),
  ],
)
def test_what_a_collective_moves(line, volume):
  groups = "replica_groups=[1,16]<=[16], channel_id=1"
  cost = predict(module(f"  ROOT %c = {line}, {groups}"))
  assert cost.exposed_comm_s == pytest.approx(volume / 2e9 + 4 * HOP)
  assert cost.compute_s == 0


def test_a_permutation_takes_one_direction_of_one_axis():
  cost = predict(
    module(
      "  ROOT %c = f32[1000]{0} collective-permute(%x), channel_id=1, "
      "source_target_pairs={{3,0},{0,1},{1,2},{2,3}}"
    )
  )
  assert cost.exposed_comm_s == pytest.approx(4000 / 0.5e9 + HOP)


SCATTER = """scatter
  %p = bf16[4096]{0} parameter(0)
  %sum = bf16[4096]{0} all-reduce(%p), channel_id=3, replica_groups=[1,16]<=[16]
  %same = bf16[4096]{0} bitcast(%sum)
  ROOT %mine = bf16[256]{0} dynamic-slice(%same, %at), dynamic_slice_sizes={256}"""


def test_an_all_reduce_that_is_sliced_is_a_reduce_scatter():
  fusion = "  %f = bf16[256]{0} fusion(%x), kind=kCustom, calls=%scatter"
  cost = predict(module(fusion, SCATTER))
  assert list(cost.collectives) == ["all-reduce-scatter"]
  seconds = 8192 * 15 / 16 / 2e9 + 4 * HOP
  assert cost.exposed_comm_s == pytest.approx(seconds)
  # A table that is sliced beside it does not make it one.
  other = SCATTER.replace("dynamic-slice(%same", "dynamic-slice(%table")
  assert list(predict(module(fusion, other)).collectives) == ["all-reduce"]


def overlapped(cycles: int) -> str:
  return module(
    f"""
  %s = (f32[250]{{0}}, f32[4000]{{0}}) all-gather-start(%x), channel_id=1, replica_groups=[1,16]<=[16], dimensions={{0}}
{work("between", cycles)}
  %d = f32[4000]{{0}} all-gather-done(%s)
""",
    "none\n  %x = f32[] iota()",
  )


def test_an_asynchronous_collective_stalls_only_where_it_is_waited_for():
  seconds = 16000 * 15 / 16 / 2e9 + 4 * HOP  # 11.5 us
  hidden, shown = predict(overlapped(20_000)), predict(overlapped(5_000))
  assert hidden.exposed_comm_s == 0
  assert hidden.step_s == pytest.approx(20e-6)
  assert shown.exposed_comm_s == pytest.approx(seconds - 5e-6)
  assert shown.step_s == pytest.approx(seconds)
  assert hidden.comm_s == shown.comm_s == pytest.approx(seconds)
  assert hidden.collectives["all-gather async"][0] == 1


def test_two_collectives_share_a_link():
  start = "all-gather-start(%x), replica_groups=[1,16]<=[16], channel_id="
  kind = "(f32[250]{0}, f32[4000]{0})"
  cost = predict(
    module(
      f"""
  %a = {kind} {start}1
  %b = {kind} {start}2
  %c = f32[4000]{{0}} all-gather-done(%a)
  %d = f32[4000]{{0}} all-gather-done(%b)
"""
    )
  )
  assert cost.step_s == pytest.approx(2 * (16000 * 15 / 16 / 2e9 + 4 * HOP))


def between_slices(cycles: int, kind: str = "ALL_REDUCE") -> str:
  """Work beside a collective of 4,000 bytes over the data centre's network."""
  attributes = (
    "is_host_transfer=true, frontend_attributes={"
    '_xla_host_transfer_rendezvous="x_0",_xla_megascale_target="{1,2}x{0:3}",'
    f'_xla_megascale_transfer_type="{kind}"}}'
  )
  end = "is_host_transfer=true"
  return module(
    f"""
  %t = token[] after-all()
  %r = (f32[1000]{{0}}, u32[], token[]) recv(%t), channel_id=1, {attributes}
  %s = (f32[1000]{{0}}, u32[], token[]) send(%x, %t), channel_id=2, {attributes}
  %w = f32[] fusion(%x), kind=kLoop, calls=%none, backend_config={{"estimated_cycles":"{cycles}"}}
  %u = token[] send-done(%s), channel_id=2, {end}
  %d = (f32[1000]{{0}}, token[]) recv-done(%r), channel_id=1, {end}
""",
    "none\n  %x = f32[] iota()",
  )


def test_an_all_reduce_between_slices_takes_the_network():
  two_slices = Torus(CHIP, [(0, 0), (0, 1)] * 2)
  # Both halves of 4,000 bytes at 1 MB/s, and the network's latency.
  seconds = 4e-3 + 1e-4
  shown = predict(between_slices(1_000_000), two_slices)
  assert shown.step_s == pytest.approx(seconds)
  assert shown.exposed_dcn_s == pytest.approx(seconds - 1e-3)
  assert shown.exposed_comm_s == shown.exposed_dcn_s
  assert shown.dcn_bytes == 4000
  hidden = predict(between_slices(6_000_000), two_slices)
  assert hidden.step_s == pytest.approx(6e-3)
  assert hidden.exposed_dcn_s == 0 and hidden.comm_s == pytest.approx(seconds)
  four = Torus(CHIP, [(0, 0), (0, 1)] * 4)
  assert predict(between_slices(0), four).dcn_bytes == 4000 * 2 * 3 / 4
  gather = predict(between_slices(0, "ALL_GATHER"), four)
  assert gather.dcn_bytes == 4000 * 3


GATHER = "all-gather(%p), channel_id=7, replica_groups=[1,16]<=[16]"


def test_a_chain_of_fusions_carries_a_gather_through_a_product():
  part = f"  %g = f32[4000]{{0}} {GATHER}"
  mark = ', backend_config={"async_collective_fusion_config":{}}'
  call = "custom-call(%g), custom_call_target="
  text = module(
    """
  %a = (f32[250]{0}, f32[4000]{0}) fusion(%x), kind=kCustom, calls=%first
  %b = f32[] fusion(%a), kind=kOutput, calls=%second, backend_config={"estimated_cycles":"4000"}
  %c = f32[4000]{0} fusion(%b), kind=kCustom, calls=%third
""",
    f'first\n{part}{mark}\n  ROOT %s = f32[] {call}"AsyncCollectiveStart"',
    f"second\n{part}{mark}\n  ROOT %s = f32[] add(%q, %q)",
    f'third\n{part}{mark}\n  ROOT %s = f32[] {call}"AsyncCollectiveDone"',
  )
  cost = predict(text)
  seconds = 16000 * 15 / 16 / 2e9 + 4 * HOP
  assert cost.comm_s == pytest.approx(seconds)
  assert cost.compute_s == pytest.approx(4e-6)
  assert cost.exposed_comm_s == pytest.approx(seconds - 4e-6)


PRODUCT = """product
  %l = bf16[256,512]{1,0} parameter(0)
  %r = bf16[512,1024]{1,0} parameter(1)
  ROOT %d = bf16[256,1024]{1,0} dot(%l, %r), lhs_contracting_dims={1}, rhs_contracting_dims={0}"""
CALL = "fusion(%l, %r), kind=kOutput, calls=%product"


@pytest.mark.parametrize("where", ["", "S(1)"])
def test_the_roofline_of_a_product(where):
  text = f"""
  %l = bf16[256,512]{{1,0:{where}}} parameter(0)
  %r = bf16[512,1024]{{1,0:{where}}} parameter(1)
  ROOT %f = bf16[256,1024]{{1,0:{where}}} {CALL}
"""
  cost = predict(module(text, PRODUCT), estimates=False)
  moved = 2 * (256 * 512 + 512 * 1024 + 256 * 1024) / 0.8e9
  # What it writes passes the vector unit, wherever it lies.
  written = 4 * 256 * 1024 / 0.8e9
  assert cost.step_s == pytest.approx(written if where else moved)
  assert list(cost.by_kind()) == ["matmul"]
  read = hlo_text.parse(module(text, PRODUCT))
  assert hlo_counts.flops(read, "product") == 2 * 256 * 512 * 1024


def test_only_taps_on_data_count():
  """Sixteen heads as a window that is padded so far that one tap remains."""
  read = hlo_text.parse(
    module(
      """
  %l = bf16[8,256,1152]{2,1,0} parameter(0)
  %r = bf16[1152,16,72]{2,1,0} parameter(1)
  ROOT %c = bf16[8,256,16,72]{3,2,1,0} convolution(%l4, %r4), window={size=1x16 pad=0_0x15_15 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
  %l4 = bf16[8,256,1152,1]{3,2,1,0} bitcast(%l)
  %r4 = bf16[1152,16,72,1]{3,2,1,0} bitcast(%r)
"""
    )
  )
  assert hlo_counts.flops(read, "main") == 2 * 8 * 256 * 1152 * 16 * 72


SLICED = """layer
  %stack = f32[18,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = f32[1,1000]{1,0} dynamic-slice(%stack, %i, %zero)
  ROOT %n = f32[1,1000]{1,0} negate(%one)"""
UPDATED = """layer
  %stack = f32[18,1000]{1,0} parameter(0)
  %i = f32[1,1000]{1,0} parameter(1)
  ROOT %n = f32[18,1000]{1,0} dynamic-update-slice(%stack, %i, %at, %zero)"""


@pytest.mark.parametrize(
  ("layer", "operand", "out", "elements"),
  [
    (SLICED, "s32[]", "f32[1,1000]{1,0}", 2000),
    (UPDATED, "f32[1,1000]{1,0}", "f32[18,1000]{1,0}", 2000),
  ],
)
def test_of_a_stack_the_slice_counts(layer, operand, out, elements):
  text = f"""
  %stack = f32[18,1000]{{1,0}} parameter(0)
  %i = {operand} parameter(1)
  ROOT %f = {out} fusion(%stack, %i), kind=kLoop, calls=%layer
"""
  cost = predict(module(text, layer), estimates=False)
  assert cost.step_s == pytest.approx(4 * elements / 0.8e9, rel=1e-2)


def test_a_pallas_call_runs_at_half_the_peak():
  call = (
    '  ROOT %p = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call"'
    ', kernel_metadata={\n"a":1\n}, backend_config={"flops":"5000000"}'
  )
  for estimates in (True, False):
    cost = predict(module(call), estimates=estimates)
    assert cost.by_kind() == {"pallas": pytest.approx(1e-5)}


def test_what_a_forward_loop_keeps():
  stacks = body(1).replace("f32[4]", "f32[18,1000]{1,0}")
  stacks = stacks.replace(
    work("layer", 1000),
    "  %x = f32[18,1000]{1,0} get-tuple-element(%s), index=1\n"
    "  %layer = f32[18,1000]{1,0} fusion(%x, %v), calls=%layer",
  )
  loop = LOOP.replace("f32[4]", "f32[18,1000]{1,0}")
  read = hlo_text.parse(module(loop, COND, stacks, UPDATED))
  assert hlo_counts.kept_bytes(read) == 18 * 1000 * 4
  back = loop.replace(
    "body=%body", 'body=%body, metadata={op_name="transpose(jvp(f))/while"}'
  )
  read = hlo_text.parse(module(back, COND, stacks, UPDATED))
  assert hlo_counts.kept_bytes(read) == 0
