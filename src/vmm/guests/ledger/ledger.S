# The guest `ledger`. `mod.rs` describes what it does; `program.rs` gives the names in braces.
#
# It runs at CPL 3 in 64-bit mode, without a stack and without interrupts, from wherever it was put. Its registers:
#
#   rbx  what it is told, never changed
#   r15  its state
#   r14  the receive queue
#   r13  the transmit queue
#   r12  the device's registers
#   r10  times in a row that it found nothing to do, up to {idle_polls}; scratch while a frame is in hand
#   r8   the number of the receive buffer in hand
#   r9   bytes of the frame in hand
#   rsi  the frame in hand: Ethernet at 0, ARP or IPv4 at 14, UDP at 34, the request at 42
#   rbp  the client in hand, a place of the table
#   rax rcx rdx rdi  scratch
#
# What is in network order stays so: addresses and ports are compared and copied as they lie in memory.

# Takes a transmit buffer, of which there is one: its address in rdi, its number in edx. Starts a frame to who sent the one in hand.
.macro ledger_begin
    mov     eax, [r15 + {free_count}]
    dec     eax
    mov     [r15 + {free_count}], eax
    movzx   edx, byte ptr [r15 + rax + {free}]
    mov     edi, edx
    shl     edi, {transmit_buffer_shift}
    add     edi, {transmit_buffers}
    xor     eax, eax
    mov     [rdi], rax
    mov     [rdi + 8], eax
    mov     eax, [rsi + 6]
    mov     [rdi + {header}], eax
    mov     ax, [rsi + 10]
    mov     [rdi + {header} + 4], ax
    # Two bytes more than the address has: the type is written later.
    mov     rax, [r15 + {mac}]
    mov     [rdi + {header} + 6], rax
.endm

# Folds the sum in rax, of at most 35 bits, to the 16 bits of a checksum. Uses rcx.
.macro ledger_fold
    .rept 4
    mov     rcx, rax
    shr     rcx, 16
    movzx   eax, ax
    add     rax, rcx
    .endr
.endm

# Extends the hash in rax by \word. rdi is the factor; uses r10.
.macro ledger_mix word
    xor     rax, \word
    imul    rax, rdi
    mov     r10, rax
    shr     r10, 32
    xor     rax, r10
.endm

.pushsection .rodata.slackwater_ledger, "a", @progbits
.balign 16
.globl slackwater_ledger_start
.hidden slackwater_ledger_start
.globl slackwater_ledger_end
.hidden slackwater_ledger_end
slackwater_ledger_start:
    cmp     qword ptr [rbx + {vcpu}], 0
    jne     .Lledger_other
    mov     r15d, {state}
    mov     r14d, {receive_queue}
    mov     r13d, {transmit_queue}
    mov     r12d, {device}

# The handshake. Descriptors, rings and buffers lie in memory from the start.
    mov     eax, [r12 + {magic}]
    cmp     eax, {magic_value}
    jne     .Lledger_no_device
    mov     eax, [r12 + {version}]
    cmp     eax, {version_value}
    jne     .Lledger_no_device
    mov     eax, [r12 + {device_id}]
    cmp     eax, {device_id_net}
    jne     .Lledger_no_device
    mov     dword ptr [r12 + {status}], 0
2:
    mov     eax, [r12 + {status}]
    test    eax, eax
    jnz     2b
    mov     dword ptr [r12 + {status}], {acknowledge}
    mov     dword ptr [r12 + {status}], {driver}
    mov     dword ptr [r12 + {device_features_select}], 0
    mov     ebp, [r12 + {device_features}]
    and     ebp, {feature_mac}
    mov     dword ptr [r12 + {driver_features_select}], 0
    mov     [r12 + {driver_features}], ebp
    mov     dword ptr [r12 + {driver_features_select}], 1
    mov     dword ptr [r12 + {driver_features}], {feature_version_1_high}
    mov     dword ptr [r12 + {status}], {features_ok}
    mov     eax, [r12 + {status}]
    cmp     eax, {features_ok}
    jne     .Lledger_failed
    xor     ecx, ecx
    mov     edx, r14d
2:
    mov     [r12 + {queue_select}], ecx
    mov     eax, [r12 + {queue_size_max}]
    cmp     eax, {queue_size}
    jb      .Lledger_failed
    mov     dword ptr [r12 + {queue_size_register}], {queue_size}
    mov     [r12 + {queue_descriptors_low}], edx
    mov     dword ptr [r12 + {queue_descriptors_high}], 0
    lea     eax, [rdx + {available}]
    mov     [r12 + {queue_available_low}], eax
    mov     dword ptr [r12 + {queue_available_high}], 0
    lea     eax, [rdx + {used}]
    mov     [r12 + {queue_used_low}], eax
    mov     dword ptr [r12 + {queue_used_high}], 0
    mov     dword ptr [r12 + {queue_ready}], 1
    mov     edx, r13d
    inc     ecx
    cmp     ecx, 2
    jb      2b
    # An address of the device's own, or the one that lies there from the start.
    test    ebp, ebp
    jz      3f
    xor     ecx, ecx
2:
    mov     al, [r12 + rcx + {config}]
    mov     [r15 + rcx + {mac}], al
    inc     ecx
    cmp     ecx, 6
    jb      2b
3:
    mov     dword ptr [r12 + {status}], {driver_ok}
    xor     r10d, r10d

# Takes transmit buffers back that the device is done with.
.Lledger_poll:
    mov     ecx, [r15 + {sent}]
    cmp     cx, [r13 + {used_index}]
    je      2f
    and     ecx, {queue_size} - 1
    mov     eax, [r13 + rcx * 8 + {used_ring}]
    and     eax, {queue_size} - 1
    inc     dword ptr [r15 + {sent}]
    mov     ecx, [r15 + {free_count}]
    cmp     ecx, {queue_size}
    jae     .Lledger_poll
    mov     [r15 + rcx + {free}], al
    inc     ecx
    mov     [r15 + {free_count}], ecx
    jmp     .Lledger_poll

# Takes a frame, once there is a buffer for its answer.
2:
    cmp     dword ptr [r15 + {free_count}], 0
    je      .Lledger_nothing
    mov     ecx, [r15 + {received}]
    cmp     cx, [r14 + {used_index}]
    je      .Lledger_nothing
    and     ecx, {queue_size} - 1
    mov     r8d, [r14 + rcx * 8 + {used_ring}]
    mov     r9d, [r14 + rcx * 8 + {used_ring} + 4]
    inc     dword ptr [r15 + {received}]
    and     r8d, {queue_size} - 1
    mov     esi, r8d
    shl     esi, {receive_buffer_shift}
    add     esi, {receive_buffers} + {header}
    cmp     r9d, {receive_buffer_bytes}
    ja      .Lledger_give_back
    sub     r9d, {header}
    jb      .Lledger_give_back
    cmp     r9d, {arp_frame_bytes}
    jb      .Lledger_give_back
    movzx   eax, word ptr [rsi + 12]
    cmp     eax, {type_ipv4}
    je      .Lledger_ipv4
    cmp     eax, {type_arp}
    jne     .Lledger_give_back

# Who asks for its address gets it.
    movabs  rax, {arp_request}
    cmp     rax, [rsi + 14]
    jne     .Lledger_give_back
    mov     eax, [rbx + {ip}]
    cmp     eax, [rsi + 38]
    jne     .Lledger_give_back
    ledger_begin
    mov     word ptr [rdi + {header} + 12], {type_arp}
    movabs  rax, {arp_reply}
    mov     [rdi + {header} + 14], rax
    mov     rax, [r15 + {mac}]
    mov     [rdi + {header} + 22], rax
    mov     eax, [rbx + {ip}]
    mov     [rdi + {header} + 28], eax
    mov     eax, [rsi + 22]
    mov     [rdi + {header} + 32], eax
    mov     ax, [rsi + 26]
    mov     [rdi + {header} + 36], ax
    mov     eax, [rsi + 28]
    mov     [rdi + {header} + 38], eax
    mov     ecx, {header} + {arp_frame_bytes}
    jmp     .Lledger_send

# A whole IPv4 packet without options and no fragment, to its address and port, with a whole request.
.Lledger_ipv4:
    cmp     r9d, 42 + {request_header_bytes}
    jb      .Lledger_give_back
    cmp     byte ptr [rsi + 14], 0x45
    jne     .Lledger_give_back
    xor     eax, eax
    .irp offset, 14, 18, 22, 26, 30
    mov     ecx, [rsi + \offset]
    add     rax, rcx
    .endr
    ledger_fold
    cmp     eax, 0xffff
    jne     .Lledger_give_back
    test    word ptr [rsi + 20], {fragment}
    jnz     .Lledger_give_back
    cmp     byte ptr [rsi + 23], {protocol_udp}
    jne     .Lledger_give_back
    mov     eax, [rbx + {ip}]
    cmp     eax, [rsi + 30]
    jne     .Lledger_give_back
    movzx   eax, word ptr [rbx + {port}]
    cmp     ax, [rsi + 36]
    jne     .Lledger_give_back
    movzx   eax, word ptr [rsi + 16]
    rol     ax, 8
    lea     ecx, [rax + 14]
    cmp     ecx, r9d
    ja      .Lledger_give_back
    movzx   ecx, word ptr [rsi + 38]
    rol     cx, 8
    lea     edx, [rcx + 20]
    cmp     edx, eax
    ja      .Lledger_give_back
    cmp     ecx, 8 + {request_header_bytes}
    jb      .Lledger_give_back
    movabs  rax, {request_magic}
    cmp     rax, [rsi + 42]
    jne     .Lledger_give_back
    mov     eax, [rsi + 42 + {request_payload_bytes}]
    cmp     eax, {payload_bytes_max}
    ja      .Lledger_give_back
    add     eax, 8 + {request_header_bytes}
    cmp     eax, ecx
    jne     .Lledger_give_back
    cmp     dword ptr [rsi + 42 + {request_pages}], {request_pages_max}
    ja      .Lledger_give_back

# The client's place, or the first that is free. Places are taken in order and never given back.
    mov     rax, [rsi + 42 + {request_client}]
    mov     rdx, [rsi + 42 + {request_number}]
    test    rdx, rdx
    jz      .Lledger_give_back
    mov     ebp, {clients}
    mov     ecx, {clients_max}
2:
    mov     rdi, [rbp + {client_number}]
    test    rdi, rdi
    jz      3f
    cmp     rax, [rbp + {client_id}]
    je      3f
    add     rbp, {client_bytes}
    dec     ecx
    jnz     2b
    jmp     .Lledger_give_back
3:
    cmp     rdx, rdi
    je      .Lledger_answer
    inc     rdi
    cmp     rdx, rdi
    jne     .Lledger_give_back

# Takes the request: the client's place has what its answer says.
    mov     [rbp + {client_id}], rax
    mov     [rbp + {client_number}], rdx
    mov     rcx, [r15 + {count}]
    mov     [rbp + {client_count_before}], rcx
    inc     rcx
    mov     [rbp + {client_count_after}], rcx
    mov     [r15 + {count}], rcx
    mov     rax, [r15 + {hash}]
    mov     [rbp + {client_hash_before}], rax
    movabs  rdi, {hash_factor}
    lea     r9, [rsi + 42 + {request_client}]
    mov     edx, [rsi + 42 + {request_payload_bytes}]
    mov     ecx, edx
    and     edx, 7
    shr     ecx, 3
    add     ecx, ({request_header_bytes} - {request_client}) / 8
2:
    ledger_mix [r9]
    add     r9, 8
    dec     ecx
    jnz     2b
    # Of the last word only what belongs to the payload.
    test    edx, edx
    jz      3f
    lea     ecx, [rdx * 8]
    mov     r10d, 1
    shl     r10, cl
    dec     r10
    and     r10, [r9]
    ledger_mix r10
3:
    mov     [rbp + {client_hash_after}], rax
    mov     [r15 + {hash}], rax

# Writes the count to as many pages as the request asks for, on from where the one before stopped.
    mov     rdx, [rbx + {pages}]
    mov     ecx, [rsi + 42 + {request_pages}]
    cmp     rcx, rdx
    cmova   rcx, rdx
    test    rcx, rcx
    jz      .Lledger_answer
    mov     rax, [r15 + {count}]
    mov     r9, [r15 + {next_page}]
2:
    mov     rdi, r9
    shl     rdi, 12
    mov     [rdi + {area}], rax
    inc     r9
    cmp     r9, rdx
    jb      3f
    xor     r9d, r9d
3:
    dec     rcx
    jnz     2b
    mov     [r15 + {next_page}], r9

# Says what the client's place has.
.Lledger_answer:
    ledger_begin
    mov     word ptr [rdi + {header} + 12], {type_ipv4}
    mov     dword ptr [rdi + {header} + 14], {ipv4_first}
    mov     dword ptr [rdi + {header} + 18], {ipv4_second}
    mov     dword ptr [rdi + {header} + 22], {ipv4_third}
    mov     eax, [rbx + {ip}]
    mov     [rdi + {header} + 26], eax
    mov     ecx, [rsi + 26]
    mov     [rdi + {header} + 30], ecx
    add     rax, rcx
    .irp word, {ipv4_first}, {ipv4_second}, {ipv4_third}
    mov     ecx, \word
    add     rax, rcx
    .endr
    ledger_fold
    not     eax
    mov     [rdi + {header} + 24], ax
    mov     ax, [rbx + {port}]
    mov     [rdi + {header} + 34], ax
    mov     ax, [rsi + 34]
    mov     [rdi + {header} + 36], ax
    # The length, and no checksum.
    mov     dword ptr [rdi + {header} + 38], {udp_length}
    movabs  rax, {answer_magic}
    mov     [rdi + {header} + 42], rax
    .irp offset, 0, 8, 16, 24, 32, 40
    mov     rax, [rbp + \offset]
    mov     [rdi + {header} + 50 + \offset], rax
    .endr
    mov     ecx, {header} + 42 + {answer_bytes}

# Gives the device the transmit buffer edx with ecx bytes.
.Lledger_send:
    mov     eax, edx
    shl     eax, 4
    mov     [r13 + rax + {descriptor_bytes}], ecx
    movzx   eax, word ptr [r13 + {available_index}]
    mov     ecx, eax
    and     ecx, {queue_size} - 1
    mov     [r13 + rcx * 2 + {available_ring}], dx
    inc     eax
    mov     [r13 + {available_index}], ax

# Gives the device the receive buffer in hand again.
.Lledger_give_back:
    xor     r10d, r10d
    movzx   eax, word ptr [r14 + {available_index}]
    mov     ecx, eax
    and     ecx, {queue_size} - 1
    mov     [r14 + rcx * 2 + {available_ring}], r8w
    inc     eax
    mov     [r14 + {available_index}], ax
    # While there is more to do the device is told of many at once.
    sub     ax, [r15 + {receive_told}]
    cmp     ax, {told_at_once}
    jae     .Lledger_tell_receive
    movzx   eax, word ptr [r13 + {available_index}]
    sub     ax, [r15 + {transmit_told}]
    cmp     ax, {told_at_once}
    jb      .Lledger_poll

# Tells the device of what the transmit queue has, unless it says that it looks by itself.
.Lledger_tell_transmit:
    mov     ax, [r13 + {available_index}]
    mov     [r15 + {transmit_told}], ax
    mfence
    test    word ptr [r13 + {used}], {no_notify}
    jnz     .Lledger_poll
    mov     dword ptr [r12 + {queue_notify}], 1
    jmp     .Lledger_poll

.Lledger_tell_receive:
    mov     ax, [r14 + {available_index}]
    mov     [r15 + {receive_told}], ax
    mfence
    test    word ptr [r14 + {used}], {no_notify}
    jnz     .Lledger_poll
    mov     dword ptr [r12 + {queue_notify}], 0
    jmp     .Lledger_poll

# Answers go at once. That receive buffers are there again can wait until nothing else is to do.
.Lledger_nothing:
    mov     ax, [r13 + {available_index}]
    cmp     ax, [r15 + {transmit_told}]
    jne     .Lledger_tell_transmit
    cmp     r10d, {idle_polls}
    jae     2f
    inc     r10d
    pause
    jmp     .Lledger_poll
2:
    mov     ax, [r14 + {available_index}]
    cmp     ax, [r15 + {receive_told}]
    jne     .Lledger_tell_receive
    cmp     qword ptr [rbx + {paced}], 0
    je      3f
    in      eax, {port_pace}
3:
    pause
    jmp     .Lledger_poll

# There is nothing to serve.
.Lledger_failed:
    mov     dword ptr [r12 + {status}], {failed}
.Lledger_no_device:
    pause
    cmp     qword ptr [rbx + {paced}], 0
    je      .Lledger_no_device
    in      eax, {port_pace}
    jmp     .Lledger_no_device

# Another vCPU than the first: it writes to a page of its own now and then.
.Lledger_other:
    mov     rdi, [rbx + {own_page}]
2:
    mov     ecx, {other_pauses}
3:
    pause
    dec     ecx
    jnz     3b
    inc     qword ptr [rdi]
    cmp     qword ptr [rbx + {paced}], 0
    je      2b
    in      eax, {port_pace}
    jmp     2b

slackwater_ledger_end:
.popsection
.purgem ledger_begin
.purgem ledger_fold
.purgem ledger_mix
