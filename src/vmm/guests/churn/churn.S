# The guest `churn`. `mod.rs` describes what it does and why its checks hold; `program.rs` gives the names in braces.
#
# It runs at CPL 3 in 64-bit mode, without a stack and without interrupts, from wherever it was put: it jumps relative to itself and
# finds everything else through rbx. All of a vCPU's state that is not in memory is in these registers:
#
#   rbx  its private page, never changed
#   r15  the last ticket it took and wrote
#   r14  the state of its random numbers
#   r13  passes completed
#   r12  the next of its own pages in sequential order
#   rbp  page writes left in this pass; during the whole check the sum of its ledger entries
#   r10  the page in hand: its index in the working set
#   r11  where check_page goes back to; during a write the ticket
#   rax rcx rdx rsi rdi r8 r9  scratch; r8 and r9 hold the two sums of a page

# The next random number in \dst.
.macro churn_random dst, tmp
    movabs  \tmp, {gamma}
    add     r14, \tmp
    mov     \dst, r14
    mov     \tmp, \dst
    shr     \tmp, 32
    xor     \dst, \tmp
    movabs  \tmp, {mix_first}
    imul    \dst, \tmp
    mov     \tmp, \dst
    shr     \tmp, 29
    xor     \dst, \tmp
    movabs  \tmp, {mix_second}
    imul    \dst, \tmp
    mov     \tmp, \dst
    shr     \tmp, 32
    xor     \dst, \tmp
.endm

# Writes the next word of a page in order, and adds it to the sums.
.macro churn_put offset, value
    mov     [rdi + \offset], \value
    add     r8, \value
    add     r9, r8
.endm

# Starts the page at rdi: the header of six words.
.macro churn_header
    xor     r8d, r8d
    xor     r9d, r9d
    churn_put {page_index}, r10
    churn_put {page_pass}, r13
    churn_put {page_ticket}, r11
    mov     rax, [rbx + {vcpu}]
    churn_put {page_vcpu}, rax
    mov     rax, [rbx + {content}]
    churn_put {page_content}, rax
    movabs  rax, {page_magic_value}
    churn_put {page_magic}, rax
.endm

# Changes the word at rdi + \offset to \value and corrects the sums, which hold for the page as it was. A word counts in the second sum
# as often as there are words from it to the end of the summed part: \weight.
.macro churn_change offset, weight, value
    mov     rcx, \value
    sub     rcx, [rdi + \offset]
    mov     [rdi + \offset], \value
    add     r8, rcx
    imul    rcx, rcx, \weight
    add     r9, rcx
.endm

.pushsection .rodata.slackwater_churn, "a", @progbits
.balign 16
.globl slackwater_churn_start
.hidden slackwater_churn_start
.globl slackwater_churn_end
.hidden slackwater_churn_end
slackwater_churn_start:

.Lchurn_pass:
    cmp     r13, [rbx + {passes}]
    jne     .Lchurn_bad_pass
    mov     rbp, [rbx + {burst}]

# One page write: choose, check what is there, take a ticket, write, enter it in the ledger, account for it.
.Lchurn_write:
    cmp     r15, [rbx + {last_ticket}]
    jne     .Lchurn_bad_register
    test    dword ptr [rbx + {flags}], {flag_sequential}
    jz      .Lchurn_draw
    mov     r10, r12
    inc     r12
    cmp     r12, [rbx + {own_pages}]
    jb      .Lchurn_chosen
    xor     r12d, r12d
    jmp     .Lchurn_chosen
.Lchurn_draw:
    # The upper 16 bits choose an entry of the draw table, the lower 32 a page of the entry's span.
    churn_random rax, rcx
    mov     rcx, rax
    shr     rcx, 48
    mov     rdx, [rbx + {draw_table}]
    lea     rdx, [rdx + rcx * 8]
    mov     ecx, [rdx + 4]
    mov     eax, eax
    imul    rax, rcx
    shr     rax, 32
    mov     r10d, [rdx]
    add     r10, rax
    # The table is made for the vCPU with the most pages; this one may have one page less.
    cmp     r10, [rbx + {own_pages}]
    jb      .Lchurn_chosen
    dec     r10
.Lchurn_chosen:
    imul    r10, [rbx + {vcpus}]
    add     r10, [rbx + {vcpu}]
    lea     r11, [rip + .Lchurn_checked]
    jmp     .Lchurn_check_page
.Lchurn_checked:
    mov     rdx, [rbx + {counter}]
    mov     r11d, 1
    lock xadd [rdx], r11
    inc     r11
    cmp     r11, r15
    jbe     .Lchurn_bad_counter_back

    # rax is the ledger entry as check_page left it: zero for a page that was never written.
    mov     ecx, [rbx + {content}]
    cmp     ecx, {content_text}
    je      .Lchurn_text
    cmp     ecx, {content_words}
    je      .Lchurn_words
    cmp     ecx, {content_random}
    je      .Lchurn_random
    cmp     ecx, {content_zero}
    je      .Lchurn_zero

.Lchurn_counter:
    churn_header
    mov     rax, r11
2:
    .irp offset, 0, 8, 16, 24, 32, 40, 48, 56
    churn_put {page_body}+\offset, rax
    inc     rax
    .endr
    add     rdi, 64
    mov     ecx, edi
    and     ecx, 4095
    cmp     ecx, {body_bytes}
    jb      2b
    jmp     .Lchurn_close

# Alternates: a page with a ticket becomes all zero, any other a counter page.
.Lchurn_zero:
    cmp     qword ptr [rsi], 0
    jle     .Lchurn_counter
    xor     eax, eax
    mov     ecx, 512
    rep stosq
    mov     rax, r11
    bts     rax, 63
    jmp     .Lchurn_enter

.Lchurn_random:
    churn_header
    movabs  rcx, {gamma}
    movabs  rdx, {mix_first}
2:
    .irp offset, 0, 8, 16, 24, 32, 40, 48, 56
    add     r14, rcx
    mov     rax, r14
    imul    rax, rdx
    mov     rsi, rax
    shr     rsi, 32
    xor     rax, rsi
    imul    rax, rdx
    churn_put {page_body}+\offset, rax
    .endr
    add     rdi, 64
    mov     eax, edi
    and     eax, 4095
    cmp     eax, {body_bytes}
    jb      2b
    jmp     .Lchurn_close

# A page that was never written starts as text. After that a few words change, each for a word of the dictionary.
.Lchurn_words:
    test    rax, rax
    jz      .Lchurn_text
    churn_change {page_pass}, {page_pass_weight}, r13
    churn_change {page_ticket}, {page_ticket_weight}, r11
    mov     rdx, [rbx + {dictionary}]
    .rept {words_changed}
    churn_random rax, rcx
    movzx   esi, ax
    imul    esi, esi, {body_words}
    shr     esi, 16
    shr     rax, {dictionary_word_shift}
    mov     rax, [rdx + rax * 8]
    mov     rcx, rax
    sub     rcx, [rdi + rsi * 8 + {page_body}]
    mov     [rdi + rsi * 8 + {page_body}], rax
    add     r8, rcx
    neg     rsi
    add     rsi, {body_words}
    imul    rcx, rsi
    add     r9, rcx
    .endr
    jmp     .Lchurn_close

.Lchurn_text:
    churn_header
    mov     rdx, [rbx + {dictionary}]
2:
    churn_random rax, rcx
    .irp phrase, 0, 32, 64, 96, 128, 160
    mov     ecx, eax
    and     ecx, {phrase_mask}
    shl     ecx, {phrase_shift}
    add     rcx, rdx
    shr     rax, {phrase_bits}
    .irp word, 0, 8, 16, 24
    mov     rsi, [rcx + \word]
    churn_put {page_body}+\phrase+\word, rsi
    .endr
    .endr
    add     rdi, 192
    mov     ecx, edi
    and     ecx, 4095
    cmp     ecx, {body_bytes}
    jb      2b

.Lchurn_close:
    and     rdi, -4096
    mov     [rdi + {page_sum_first}], r8
    mov     [rdi + {page_sum_second}], r9
    mov     rax, r11
# rax is the new ledger entry.
.Lchurn_enter:
    mov     rsi, [rbx + {ledger}]
    mov     rcx, rax
    sub     rcx, [rsi + r10 * 8]
    mov     [rsi + r10 * 8], rax
    add     [rbx + {ledger_sum}], rcx
    mov     [rbx + {last_index}], r10
    mov     [rbx + {last_ticket}], r11
    mov     r15, r11
    inc     qword ptr [rbx + {writes}]
    dec     rbp
    jnz     .Lchurn_write

# The end of a pass: look at the other vCPUs, report, ask for orders, wait for the next period.
    inc     r13
    mov     [rbx + {passes}], r13
    lea     r11, [rip + .Lchurn_report]
    jmp     .Lchurn_check_peers
.Lchurn_report:
    mov     eax, r13d
    out     {port_progress}, eax
    in      eax, {port_command}
    test    eax, {command_check}
    jnz     .Lchurn_check_all
.Lchurn_pace:
    test    dword ptr [rbx + {flags}], {flag_paced}
    jz      .Lchurn_pass
    in      eax, {port_pace}
    jmp     .Lchurn_pass

# The whole check.
.Lchurn_check_all:
    cmp     r13, [rbx + {passes}]
    jne     .Lchurn_bad_pass
    cmp     r15, [rbx + {last_ticket}]
    jne     .Lchurn_bad_register
    # The tables that no one writes.
    mov     rsi, [rbx + {draw_table}]
    mov     ecx, {tables_words} / 8
    xor     r8d, r8d
    xor     r9d, r9d
2:
    .irp offset, 0, 8, 16, 24, 32, 40, 48, 56
    add     r8, [rsi + \offset]
    add     r9, r8
    .endr
    add     rsi, 64
    dec     ecx
    jnz     2b
    cmp     r8, [rbx + {tables_sum_first}]
    jne     .Lchurn_bad_tables
    cmp     r9, [rbx + {tables_sum_second}]
    jne     .Lchurn_bad_tables
    # Every page of its own against the ledger, and the ledger against its sum.
    xor     ebp, ebp
    mov     r10, [rbx + {vcpu}]
    lea     r11, [rip + 3f]
2:
    jmp     .Lchurn_check_page
3:
    add     rbp, [rsi]
    add     r10, [rbx + {vcpus}]
    cmp     r10, [rbx + {pages}]
    jb      2b
    cmp     rbp, [rbx + {ledger_sum}]
    jne     .Lchurn_bad_ledger_sum
    # Its own last ticket is where it wrote it.
    test    r15, r15
    jz      2f
    mov     r10, [rbx + {last_index}]
    cmp     r10, [rbx + {pages}]
    jae     .Lchurn_bad_last_index
    mov     rsi, [rbx + {ledger}]
    mov     rcx, [rsi + r10 * 8]
    btr     rcx, 63
    cmp     rcx, r15
    jne     .Lchurn_bad_last_write
2:
    lea     r11, [rip + 2f]
    jmp     .Lchurn_check_peers
2:
    # What all vCPUs have written against what the counter has given out: the counter after the sum, then the sum after the counter.
    mov     r9, [rbx + {counter}]
    lea     r11, [rip + 2f]
    jmp     .Lchurn_sum_writes
2:
    mov     rcx, [r9]
    cmp     rcx, rdx
    jb      .Lchurn_bad_counter_low
    mov     rdi, rcx
    lea     r11, [rip + 2f]
    jmp     .Lchurn_sum_writes
2:
    mov     rcx, rdi
    add     rdx, [rbx + {vcpus}]
    cmp     rcx, rdx
    ja      .Lchurn_bad_counter_high
    inc     qword ptr [rbx + {checks}]
    mov     eax, [rbx + {own_pages}]
    out     {port_checked}, eax
    jmp     .Lchurn_pace

# The sum of all vCPUs' page writes in rdx. Back to r11; uses rax, rsi.
.Lchurn_sum_writes:
    xor     edx, edx
    mov     rsi, [rbx + {private_first}]
    mov     rax, [rbx + {vcpus}]
2:
    add     rdx, [rsi + {writes}]
    add     rsi, 4096
    dec     rax
    jnz     2b
    jmp     r11

# No vCPU's last ticket goes back, and none is above the counter, which is read after them. Back to r11; uses rax, rcx, rdx, rsi, r8.
.Lchurn_check_peers:
    mov     rsi, [rbx + {private_first}]
    xor     r10d, r10d
    xor     ecx, ecx
2:
    mov     rax, [rsi + {last_ticket}]
    mov     rdx, [rbx + r10 * 8 + {seen}]
    cmp     rax, rdx
    jb      .Lchurn_bad_seen
    mov     [rbx + r10 * 8 + {seen}], rax
    cmp     rax, rcx
    cmova   rcx, rax
    add     rsi, 4096
    inc     r10
    cmp     r10, [rbx + {vcpus}]
    jb      2b
    mov     rdx, [rbx + {counter}]
    mov     rdx, [rdx]
    cmp     rcx, rdx
    ja      .Lchurn_bad_peer_above_counter
    jmp     r11

# Checks page r10 against its ledger entry. Back to r11 with rdi = the page, rsi = its ledger entry's address, rax = the entry without
# bit 63, r8 and r9 = the page's sums if it has some. Uses rcx, rdx.
.Lchurn_check_page:
    mov     rsi, [rbx + {ledger}]
    lea     rsi, [rsi + r10 * 8]
    mov     rdi, r10
    shl     rdi, 12
    add     rdi, [rbx + {working_set}]
    mov     rax, [rsi]
    mov     rcx, rdi
    test    rax, rax
    jle     .Lchurn_expect_zero
    xor     r8d, r8d
    xor     r9d, r9d
    mov     edx, 51
2:
    .irp offset, 0, 8, 16, 24, 32, 40, 48, 56, 64, 72
    add     r8, [rcx + \offset]
    add     r9, r8
    .endr
    add     rcx, 80
    dec     edx
    jnz     2b
    cmp     r8, [rdi + {page_sum_first}]
    jne     .Lchurn_bad_sum_first
    cmp     r9, [rdi + {page_sum_second}]
    jne     .Lchurn_bad_sum_second
    mov     rcx, [rdi + {page_ticket}]
    cmp     rax, rcx
    jne     .Lchurn_bad_ticket
    mov     rcx, [rdi + {page_index}]
    cmp     r10, rcx
    jne     .Lchurn_bad_index
.Lchurn_check_ticket:
    cmp     rax, r15
    ja      .Lchurn_bad_above_last
    mov     rdx, [rbx + {counter}]
    mov     rdx, [rdx]
    cmp     rax, rdx
    ja      .Lchurn_bad_above_counter
    jmp     r11

# Never written, or written as zeros.
.Lchurn_expect_zero:
    xor     edx, edx
    mov     r8d, 64
2:
    .irp offset, 0, 8, 16, 24, 32, 40, 48, 56
    or      rdx, [rcx + \offset]
    .endr
    add     rcx, 64
    dec     r8d
    jnz     2b
    btr     rax, 63
    test    rdx, rdx
    jz      .Lchurn_check_ticket
    mov     rcx, rdx
    xor     edx, edx
    mov     edi, {code_not_zero}
    jmp     .Lchurn_fail

# What was found: edi = the code, r10 = the index, rdx = expected, rcx = found.
.Lchurn_bad_register:
    mov     r10, [rbx + {last_index}]
    mov     rdx, r15
    mov     rcx, [rbx + {last_ticket}]
    mov     edi, {code_register}
    jmp     .Lchurn_fail
.Lchurn_bad_pass:
    xor     r10d, r10d
    mov     rdx, r13
    mov     rcx, [rbx + {passes}]
    mov     edi, {code_pass}
    jmp     .Lchurn_fail
.Lchurn_bad_sum_first:
    mov     rdx, [rdi + {page_sum_first}]
    mov     rcx, r8
    mov     edi, {code_checksum}
    jmp     .Lchurn_fail
.Lchurn_bad_sum_second:
    mov     rdx, [rdi + {page_sum_second}]
    mov     rcx, r9
    mov     edi, {code_checksum}
    jmp     .Lchurn_fail
.Lchurn_bad_ticket:
    mov     rdx, rax
    mov     edi, {code_ticket}
    jmp     .Lchurn_fail
.Lchurn_bad_index:
    mov     rdx, r10
    mov     edi, {code_index}
    jmp     .Lchurn_fail
.Lchurn_bad_above_last:
    mov     rcx, rax
    mov     rdx, r15
    mov     edi, {code_above_last}
    jmp     .Lchurn_fail
.Lchurn_bad_above_counter:
    mov     rcx, rax
    mov     edi, {code_above_counter}
    jmp     .Lchurn_fail
.Lchurn_bad_counter_back:
    mov     rcx, r11
    mov     rdx, r15
    mov     edi, {code_counter_back}
    jmp     .Lchurn_fail
.Lchurn_bad_tables:
    xor     r10d, r10d
    mov     rdx, [rbx + {tables_sum_first}]
    mov     rcx, r8
    mov     edi, {code_tables}
    jmp     .Lchurn_fail
.Lchurn_bad_ledger_sum:
    xor     r10d, r10d
    mov     rdx, [rbx + {ledger_sum}]
    mov     rcx, rbp
    mov     edi, {code_ledger_sum}
    jmp     .Lchurn_fail
.Lchurn_bad_last_index:
    xor     ecx, ecx
.Lchurn_bad_last_write:
    mov     rdx, r15
    mov     edi, {code_last_write}
    jmp     .Lchurn_fail
.Lchurn_bad_seen:
    mov     rcx, rax
    mov     edi, {code_seen}
    jmp     .Lchurn_fail
.Lchurn_bad_peer_above_counter:
    xor     r10d, r10d
    mov     edi, {code_above_counter_peer}
    jmp     .Lchurn_fail
.Lchurn_bad_counter_low:
    xor     r10d, r10d
    mov     edi, {code_counter_low}
    jmp     .Lchurn_fail
.Lchurn_bad_counter_high:
    xor     r10d, r10d
    mov     edi, {code_counter_high}

# The first inconsistency is the last thing that this vCPU says: the code is stored after what it tells about.
.Lchurn_fail:
    mov     [rbx + {bad_index}], r10
    mov     [rbx + {bad_expected}], rdx
    mov     [rbx + {bad_found}], rcx
    mov     eax, edi
    mov     [rbx + {bad_code}], rax
    out     {port_inconsistent}, eax
2:
    in      eax, {port_command}
    jmp     2b

slackwater_churn_end:
.popsection
.purgem churn_random
.purgem churn_put
.purgem churn_header
.purgem churn_change
