"""Corrects two defects of QEMU in a copy of its program. usage: qemu.py PROGRAM

1. Where VMRUN injects an interrupt, QEMU's `helper_vmrun` delivers it at once, and leaves its vector in the processor's `exception_index` all the same. If
the translated code is left next for something that is neither an interrupt nor a #VMEXIT (another thread wakes the processor), the vector is delivered once
more, as an exception: to a guest that has interrupts disabled and is in the handler of that very interrupt. QEMU 7.2 to 11.1 have it. The store of the vector
becomes a no-op; what is delivered takes it from an argument. It is found by what is around it, and must be the only one: `helper_vmrun` calls
`do_interrupt_x86_hardirq` once, and stores 2, the vector of an NMI, into the same field elsewhere.

2. Whenever any processor loads its floating point state, `cpu_clear_ignne` clears a bit in the flags (`hflags2`) of the *first* processor, by a plain read and
write, beside that processor's own thread. What that thread sets or clears meanwhile is undone: that nested paging is on (its guest ends in a triple fault), that
it is off (its own kernel runs on the guest's tables), that interrupts are enabled. The instruction becomes a no-op: the bit, of MS-DOS's way to report errors
of floating point, is only ever set by a write to port 0xf0.

Exit status 0: corrected, now or before. 1: this program is not understood in all of that; what was not is as it was.
"""

import re
import struct
import sys

# Of the store and the call: the instructions between them are few.
NEAR_BYTES = 80
# By length: of the store of the vector 6, of the instruction that clears the bit 7 or 10.
NO_OPS = {6: bytes.fromhex("660f1f440000"), 7: bytes.fromhex("0f1f8000000000"), 10: bytes.fromhex("662e0f1f840000000000")}
# `cpu_clear_ignne` is that short.
SHORT_BYTES = 128


class NotUnderstood(Exception):
    """There is not what was expected, and nothing may be changed."""


def only(what, found):
    found = list(found)
    if len(found) != 1:
        raise NotUnderstood(f"{len(found)} of {what}")
    return found[0]


def table(data, place, sizes, form):
    """The headers whose table's offset is at `place`, and their size and number at `sizes`."""
    (at,), (size, count) = struct.unpack_from("<Q", data, place), struct.unpack_from("<HH", data, sizes)
    return [struct.unpack_from(form, data, at + size * index) for index in range(count)]


class Program:
    """An ELF program for x86-64."""

    def __init__(self, data):
        if data[:6] != b"\x7fELF\x02\x01" or data[18:20] != b"\x3e\x00":
            raise NotUnderstood("this is no ELF program for x86-64")
        headers = table(data, 0x28, 0x3A, "<IIQQQQIIQQ")
        # Names and values of what it exports.
        self.symbols = {}
        for _, kind, _, _, offset, length, link, _, _, entry in headers:
            if kind == 11:
                names = headers[link][4]
                for place in range(offset, offset + length, entry):
                    name, _, _, _, value, bytes_ = struct.unpack_from("<IBBHQQ", data, place)
                    end = data.index(b"\0", names + name)
                    self.symbols[data[names + name : end].decode()] = (value, bytes_)
        headers = table(data, 0x20, 0x36, "<IIQQQQQQ")
        self.loads = [(address, offset, length) for kind, _, offset, address, _, length, _, _ in headers if kind == 1]

    def symbol(self, name):
        """Its address and its length."""
        if name not in self.symbols:
            raise NotUnderstood(f"no symbol {name}")
        return self.symbols[name]

    def offset(self, address):
        """Where in the file that address is."""
        return only(f"a place of {address:#x}", (o + address - a for a, o, n in self.loads if a <= address < a + n))


def found(what, code, instruction, lengths):
    """Where in `code` the only instruction of that pattern is, or the no-op that is there already, and the no-op for it."""
    hits = [(hit.start(), NO_OPS[len(hit[0])]) for hit in re.finditer(instruction, code, re.DOTALL)]
    no_ops = [(hit.start(), hit[0]) for length in lengths for hit in re.finditer(re.escape(NO_OPS[length]), code)]
    return only(what, hits or no_ops)


def store_of_the_vector(program, data):
    """The offset of the instruction in the file, and the no-op for it."""
    address, length = program.symbol("helper_vmrun")
    deliver, _ = program.symbol("do_interrupt_x86_hardirq")
    begin = program.offset(address)
    code = data[begin : begin + length]
    calls = (hit.start() for hit in re.finditer(b"\xe8", code) if hit.start() + 5 <= length)
    call = only(
        "a call of do_interrupt_x86_hardirq",
        (at for at in calls if address + at + 5 + struct.unpack_from("<i", code, at + 1)[0] == deliver),
    )
    # mov dword ptr [register + field], 2
    nmi = re.finditer(rb"\xc7[\x80-\x83\x85-\x87](....)\x02\0\0\0", code, re.DOTALL)
    # The processor's state is before the registers, which are what the function was given.
    field = only("a store of 2", {hit[1] for hit in nmi if struct.unpack("<i", hit[1])[0] < 0})
    before = max(call - NEAR_BYTES, 0)
    # mov dword ptr [register + field], register
    store = rb"\x89[\x80-\xbf]" + re.escape(field)
    at, no_op = found("a store of the vector before the call", code[before:call], store, [6])
    return begin + before + at, no_op


def clearing_of_the_bit(program, data):
    """The same, of the instruction of `cpu_clear_ignne`."""
    address, length = program.symbol("cpu_clear_ignne")
    if length > SHORT_BYTES:
        raise NotUnderstood(f"cpu_clear_ignne has {length} bytes")
    begin = program.offset(address)
    code = data[begin : begin + length]
    # and dword or byte ptr [register + field], all but 0x80
    clearing = rb"\x81[\xa0-\xa3\xa5-\xa7]....\x7f\xff\xff\xff|\x80[\xa0-\xa3\xa5-\xa7]....\x7f"
    at, no_op = found("an instruction that clears the bit", code, clearing, [7, 10])
    return begin + at, no_op


def main():
    path = sys.argv[1]
    with open(path, "rb") as file:
        data = file.read()
    failed = False
    for find in (store_of_the_vector, clearing_of_the_bit):
        try:
            at, no_op = find(Program(data), data)
        except (NotUnderstood, struct.error, IndexError, ValueError) as error:
            print(f"qemu.py: {path} is not understood, and in this is as it was: {error}", file=sys.stderr)
            failed = True
            continue
        if not data.startswith(no_op, at):
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(no_op)
    sys.exit(failed)


main()
