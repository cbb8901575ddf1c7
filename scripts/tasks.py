#!/usr/bin/env python3
"""Lists the tasks of a Linux guest from an exported core with drgn, one `PID COMMAND` a line.

usage: tasks.py CORE VMLINUX

Addresses come from the kernel's own table of symbols in the core (Linux 6.0 or newer with CONFIG_KALLSYMS_ALL), types from the BTF in VMLINUX, the guest's kernel as an
ELF file: debug information is not needed.
"""

import struct
import sys

import drgn
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms
from drgn.helpers.linux.list import list_for_each_entry

STRUCT, UNION = 4, 5
# The bytes that follow the head of a type of each kind: fixed, and for each of its members.
FOLLOW = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12)}


def section(elf, name):
    (headers,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    all_ = [struct.unpack_from("<IIQQQQ", elf, headers + number * size) for number in range(count)]
    for head in all_:
        at = all_[names][4] + head[0]
        if elf[at : elf.index(b"\0", at)] == name:
            return elf[head[4] : head[4] + head[5]]
    sys.exit(f"the kernel has no section {name.decode()}")


class Btf:
    def __init__(self, data):
        head, types, types_bytes, strings = struct.unpack_from("<4xIIII", data)
        self.data, self.strings, self.types = data, head + strings, [None]
        at, end = head + types, head + types + types_bytes
        while at < end:
            name, info, size = struct.unpack_from("<III", data, at)
            kind, members = info >> 24 & 0x1F, info & 0xFFFF
            self.types.append((kind, self.name(name), size, at + 12, members, info >> 31))
            fixed, each = FOLLOW.get(kind, (0, 0))
            at += 12 + fixed + each * members

    def name(self, at):
        at += self.strings
        return self.data[at : self.data.index(b"\0", at)].decode()

    def struct(self, name):
        return next(type_ for type_ in self.types[1:] if type_[:2] == (STRUCT, name))

    def offset(self, type_, name):
        """Of a member, in bytes; also one of a structure without a name in it."""
        _, _, _, at, members, has_bits = type_
        for number in range(members):
            own, of, offset = struct.unpack_from("<III", self.data, at + number * 12)
            offset = (offset & 0xFFFFFF if has_bits else offset) // 8
            if self.name(own) == name:
                return offset
            if not self.name(own) and self.types[of][0] in (STRUCT, UNION):
                within = self.offset(self.types[of], name)
                if within is not None:
                    return offset + within
        return None


def main():
    core, vmlinux = sys.argv[1:]
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(prog), enable_index=0)
    print("kernel", prog["UTS_RELEASE"].string_().decode(), file=sys.stderr)

    with open(vmlinux, "rb") as file:
        btf = Btf(section(file.read(), b".BTF"))
    found = btf.struct("task_struct")
    integer = prog.int_type("int", 4, True)
    text = prog.array_type(prog.int_type("char", 1, True), 16)
    ends = [("next", 0), ("prev", 64)]
    links = [drgn.TypeMember(lambda: prog.pointer_type(links), name, bit) for name, bit in ends]
    links = prog.struct_type("list_head", 16, links)
    members = [("tasks", links), ("pid", integer), ("comm", text)]
    members = [drgn.TypeMember(type_, name, 8 * btf.offset(found, name)) for name, type_ in members]
    task = prog.struct_type("task_struct", found[2], members)

    first = drgn.Object(prog, task, address=prog.symbol("init_task").address)
    for one in [first, *list_for_each_entry(task, first.tasks.address_of_(), "tasks")]:
        print(one.pid.value_(), one.comm.string_().decode())


if __name__ == "__main__":
    main()
