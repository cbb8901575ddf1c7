# The guest `touch`. `mod.rs` describes what it does; `program.rs` gives the names in braces.
#
# It runs at CPL 3 in 64-bit mode, without a stack and without interrupts, from wherever it was put. Its registers:
#
#   rbx  what it is told, never changed
#   r15  the control page
#   r13  passes completed
#   r12  the list in hand
#   r14  passes left until a cut is due
#   rax rcx rdx rsi rdi  scratch

.pushsection .rodata.slackwater_touch, "a", @progbits
.balign 16
.globl slackwater_touch_start
.hidden slackwater_touch_start
.globl slackwater_touch_end
.hidden slackwater_touch_end
slackwater_touch_start:
    mov     r15, [rbx + {control}]
    mov     r14, [rbx + {cut}]

.Ltouch_pass:
    mov     rsi, [rbx + {stride}]
    imul    rsi, r12
    add     rsi, [rbx + {list}]
    mov     rcx, [rbx + {count}]
    test    rcx, rcx
    jz      .Ltouch_written
.Ltouch_page:
    mov     edi, [rsi]
    shl     rdi, 12
    mov     eax, 1
    lock xadd [r15 + {counter}], rax
    inc     rax
    mov     rdx, [rbx + {words}]
2:
    mov     [rdi], rax
    add     rdi, 8
    dec     rdx
    jnz     2b
    add     rsi, 4
    dec     rcx
    jnz     .Ltouch_page

.Ltouch_written:
    inc     r12
    cmp     r12, [rbx + {lists}]
    jb      2f
    xor     r12d, r12d
2:
    inc     r13
    mov     rax, [rbx + {passes}]
    mov     [rax], r13

    # Without cuts there is no barrier either.
    cmp     qword ptr [rbx + {cut}], 0
    je      .Ltouch_pace
    lock inc qword ptr [r15 + {arrived}]
    cmp     qword ptr [rbx + {vcpu}], 0
    jne     .Ltouch_wait
    mov     rax, [rbx + {vcpus}]
    imul    rax, r13
2:
    cmp     [r15 + {arrived}], rax
    jae     3f
    pause
    jmp     2b
3:
    dec     r14
    jnz     4f
    mov     r14, [rbx + {cut}]
    mov     eax, r13d
    out     {port_cut}, eax
4:
    mov     [r15 + {open}], r13
    jmp     .Ltouch_pace

.Ltouch_wait:
    cmp     [r15 + {open}], r13
    jae     .Ltouch_pace
    pause
    jmp     .Ltouch_wait

.Ltouch_pace:
    cmp     qword ptr [rbx + {paced}], 0
    je      .Ltouch_pass
    in      eax, {port_pace}
    jmp     .Ltouch_pass

slackwater_touch_end:
.popsection
