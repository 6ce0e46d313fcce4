#include "cpu/kvm/guest_test.h"

#include <dirent.h>

PROGRAM16(ports, "mov $0x510, %dx\n mov $0x12345678, %eax\n"
                 "out %al, %dx\n out %ax, %dx\n out %eax, %dx\n"
                 "xor %eax, %eax\n in %dx, %al\n mov %eax, %ebx\n"
                 "xor %eax, %eax\n in %dx, %ax\n mov %eax, %ecx\n"
                 "in %dx, %eax\n mov %eax, %ebp\n hlt")
PROGRAM16(string_ports, "cld\n mov $0x511, %dx\n mov $0x2000, %si\n mov $3, %cx\n rep outsw\n"
                        "mov $0x3000, %di\n mov $2, %cx\n rep insb\n hlt")
PROGRAM64(mmio, "mov $0xd0000, %edi\n mov $0x0102030405060708, %rax\n"
                "mov %al, (%rdi)\n mov %ax, 2(%rdi)\n mov %eax, 4(%rdi)\n mov %rax, 8(%rdi)\n"
                "mov (%rdi), %rbx\n movzbl 1(%rdi), %ecx\n hlt")
PROGRAM64(rom, "mov $0x20000, %edi\n movl $7, (%rdi)\n mov (%rdi), %eax\n hlt")
PROGRAM64(triple, "mov $0x77, %ebx\n ud2\n mov $0x88, %ebx\n hlt")
PROGRAM64(spin, "1: pause\n jmp 1b")
PROGRAM64(kick_port, "mov $0x510, %dx\n out %al, %dx\n in %dx, %eax\n hlt")
PROGRAM64(touch, "movl $1, 0x5000\n movl $1, 0x6ffc\n hlt")
PROGRAM16(nmi, "sti\n 1: hlt\n jmp 1b")
PROGRAM16(iret_out, "mov $0x513, %dx\n out %al, %dx\n iret")

static void ports_reach_the_board(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    GUEST_LOAD(&guest, ports);
    real_mode(&state);
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    assert_int_equal(guest.count, 6);
    static const struct access wanted[] = {
        {PORT_WRITE, 0, 1, 0x510, 0x78},       {PORT_WRITE, 0, 2, 0x510, 0x5678},
        {PORT_WRITE, 0, 4, 0x510, 0x12345678}, {PORT_READ, 0, 1, 0x510, 0xa1b2c3d4},
        {PORT_READ, 0, 2, 0x510, 0xa1b2c3d4},  {PORT_READ, 0, 4, 0x510, 0xa1b2c3d4},
    };
    for (unsigned i = 0; i < ARRAY_LEN(wanted); i++) {
        assert_int_equal(guest.log[i].kind, wanted[i].kind);
        assert_int_equal(guest.log[i].size, wanted[i].size);
        assert_int_equal(guest.log[i].address, wanted[i].address);
        assert_int_equal(guest.log[i].value, wanted[i].value);
    }
    guest_get(&guest, 0, &state);
    assert_int_equal(state.gpr[CPU_RBX], 0xd4);
    assert_int_equal(state.gpr[CPU_RCX], 0xc3d4);
    assert_int_equal(state.gpr[CPU_RBP], 0xa1b2c3d4);
    assert_int_equal(state.rip, PROGRAM_AT + (guest_ports_end - guest_ports)); /* past HLT */
    guest_end(&guest);
}

static void string_instructions_transfer_each_item(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    GUEST_LOAD(&guest, string_ports);
    memcpy(mem_at(guest.mem, 0x2000, 6, true), "aabbcc", 6);
    real_mode(&state);
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    assert_true(guest.count >= 5); /* KVM reads ahead on INS */
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(guest.log[i].kind, PORT_WRITE);
        assert_int_equal(guest.log[i].size, 2);
        assert_int_equal(guest.log[i].value, 0x6161 + 0x101 * i);
    }
    assert_int_equal(le16_read(mem_at(guest.mem, 0x3000, 2, false)), 0xd4d4);
    guest_get(&guest, 0, &state);
    assert_int_equal(state.gpr[CPU_RCX] & 0xffff, 0);
    assert_int_equal(state.gpr[CPU_RSI] & 0xffff, 0x2006);
    guest_end(&guest);
}

static void mmio_reaches_the_board_in_its_size(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    GUEST_LOAD(&guest, mmio);
    long_mode(&guest, &state);
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    static const struct access wanted[] = {
        {MMIO_WRITE, 0, 1, MMIO_AT, 0x08},
        {MMIO_WRITE, 0, 2, MMIO_AT + 2, 0x0708},
        {MMIO_WRITE, 0, 4, MMIO_AT + 4, 0x05060708},
        {MMIO_WRITE, 0, 8, MMIO_AT + 8, 0x0102030405060708},
        {MMIO_READ, 0, 8, MMIO_AT, 0x1122334455667788},
        {MMIO_READ, 0, 1, MMIO_AT + 1, 0x1122334455667788},
    };
    assert_int_equal(guest.count, ARRAY_LEN(wanted));
    for (unsigned i = 0; i < ARRAY_LEN(wanted); i++) {
        assert_int_equal(guest.log[i].kind, wanted[i].kind);
        assert_int_equal(guest.log[i].size, wanted[i].size);
        assert_int_equal(guest.log[i].address, wanted[i].address);
        assert_int_equal(guest.log[i].value, wanted[i].value);
    }
    guest_get(&guest, 0, &state);
    assert_int_equal(state.gpr[CPU_RBX], 0x1122334455667788);
    assert_int_equal(state.gpr[CPU_RCX], 0x88);
    guest_end(&guest);
}

static void writes_to_rom_are_mmio(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    GUEST_LOAD(&guest, rom);
    le32_write(mem_at_load(guest.mem, ROM_AT, 4), 0xb105);
    long_mode(&guest, &state);
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    guest_get(&guest, 0, &state);
    assert_int_equal(state.gpr[CPU_RAX], 0xb105);
    assert_int_equal(guest.count, 1);
    assert_int_equal(guest.log[0].kind, MMIO_WRITE);
    assert_int_equal(guest.log[0].address, ROM_AT);
    assert_int_equal(guest.log[0].value, 7);
    guest_end(&guest);
}

static void nobody_at_home_reads_as_ones(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    guest.io = (struct engine_io){.opaque = &guest};
    GUEST_LOAD(&guest, ports);
    real_mode(&state);
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    guest_get(&guest, 0, &state);
    assert_int_equal(state.gpr[CPU_RBX], 0xff);
    assert_int_equal(state.gpr[CPU_RCX], 0xffff);
    assert_int_equal(state.gpr[CPU_RBP], 0xffffffff);
    GUEST_LOAD(&guest, mmio);
    long_mode(&guest, &state);
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    guest_get(&guest, 0, &state);
    assert_int_equal(state.gpr[CPU_RBX], UINT64_MAX);
    assert_int_equal(state.gpr[CPU_RCX], 0xff);
    guest_end(&guest);
}

static void a_triple_fault_is_a_shutdown(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    GUEST_LOAD(&guest, triple);
    long_mode(&guest, &state);
    state.idt = (struct cpu_table){0}; /* no gate for #UD, #GP, #DF */
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_SHUTDOWN);
    guest_get(&guest, 0, &state);
    /* AMD leaves the state of a shutdown undefined and KVM then resets the vCPU. */
    if (state.rip != 0xfff0) {
        assert_int_equal(state.gpr[CPU_RBX], 0x77);
        assert_int_equal(state.rip, PROGRAM_AT + 5);
    }
    guest_end(&guest);
}

static void a_kick_ends_a_loop(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct runner runner;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    GUEST_LOAD(&guest, spin);
    long_mode(&guest, &state);
    guest_set(&guest, 0, &state);
    for (int i = 0; i < 50; i++) { /* at changing moments: before, at and after entry */
        runner_start(&runner, &guest, 0);
        if (i % 5)
            nap_ms(i % 5 == 4 ? 3 : 0);
        runner_stop(&runner);
        assert_int_equal(runner.exit.reason, ENGINE_EXIT_KICK);
    }
    guest_get(&guest, 0, &state);
    assert_in_range(state.rip, PROGRAM_AT, PROGRAM_AT + 3);
    guest_end(&guest);
}

static void a_kick_before_the_run_is_kept_once(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    GUEST_LOAD(&guest, ports);
    real_mode(&state);
    guest_set(&guest, 0, &state);
    engine_kvm.vcpu_kick(guest.vcpu[0]);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_KICK);
    assert_int_equal(guest.count, 0);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    assert_int_equal(guest.count, 6);
    guest_end(&guest);
}

static void a_kick_from_a_callback_lets_the_instruction_end(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    guest.kick_at_port = 0x510;
    GUEST_LOAD(&guest, kick_port);
    long_mode(&guest, &state);
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_KICK);
    assert_int_equal(guest.count, 1);
    guest_get(&guest, 0, &state);
    assert_int_equal(state.rip, PROGRAM_AT + 5); /* mov (4 bytes) and out (1) are done */
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    assert_int_equal(guest.count, 2);
    guest_end(&guest);
}

static void halted_without_irqchip_stays_halted(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 2);
    GUEST_LOAD(&guest, ports);
    real_mode(&state);
    state.run_state = CPU_HALTED;
    guest_set(&guest, 0, &state);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    engine_kvm.vcpu_kick(guest.vcpu[0]);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_KICK);
    guest_get(&guest, 0, &state);
    assert_int_equal(state.run_state, CPU_HALTED);
    assert_int_equal(guest_run(&guest, 1).reason, ENGINE_EXIT_HALT); /* waits for SIPI */
    assert_int_equal(guest.count, 0);
    guest_end(&guest);
}

static void the_dirty_log_holds_what_was_written(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    struct err err = {0};
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    const struct mem_region *region = mem_find(guest.mem, 0);
    GUEST_LOAD(&guest, touch);
    assert_int_equal(engine_kvm.dirty_sync(guest.vm, &err), -EINVAL);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(engine_kvm.dirty_start(guest.vm, &err), 0);
        long_mode(&guest, &state);
        guest_set(&guest, 0, &state);
        assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
        assert_int_equal(engine_kvm.dirty_sync(guest.vm, &err), 0);
        for (unsigned page = 0; page < MEMORY_SIZE / MEM_PAGE_SIZE; page++) {
            /* The page tables have accessed bits, maybe. Code is only read, but KVM maps it
             * writable on the way, because the host's page is, and then calls it dirty. */
            bool maybe = (page >= 9 && page <= 11) || page == PROGRAM_AT / MEM_PAGE_SIZE;
            int wanted = page == 5 || page == 6 ? MEM_PAGE_DIRTY : 0;
            if (!maybe && region->marks[page] != wanted)
                fail_msg("page %u in round %d: marks %d, not %d", page, round, region->marks[page],
                         wanted);
            region->marks[page] = 0;
        }
        /* What was taken is not told twice. */
        assert_int_equal(engine_kvm.dirty_sync(guest.vm, &err), 0);
        assert_int_equal(region->marks[5] | region->marks[6], 0);
        /* A device's write counts too. */
        assert_int_equal(mem_write(guest.mem, 0x7000, "x", 1), 0);
        assert_int_equal(region->marks[7], MEM_PAGE_DIRTY);
        region->marks[7] = 0;
        assert_int_equal(engine_kvm.dirty_stop(guest.vm, &err), 0);
        assert_int_equal(mem_write(guest.mem, 0x7000, "x", 1), 0);
        assert_int_equal(region->marks[7], 0);
    }
    guest_end(&guest);
}

static int open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static void everything_is_released(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    int before = open_descriptors();
    for (int i = 0; i < 3; i++) {
        guest_make(&guest, ENGINE_IRQCHIP_ENGINE, 2);
        guest_end(&guest);
    }
    assert_int_equal(open_descriptors(), before);
    engine_kvm.vm_free(NULL);
    engine_kvm.vcpu_free(NULL);
}

static void a_descriptor_given_is_used_and_kept_open(void **test)
{
    (void)test;
    need_kvm();
    struct err err = {0};
    struct engine_vm *vm;
    struct mem *mem = mem_new();
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    struct engine_config config = {.mem = mem, .vcpus = 1, .kvm_path = "/nowhere", .kvm_fd = fd};
    assert_int_equal(engine_kvm.vm_new(&config, &vm, &err), 0);
    engine_kvm.vm_free(vm);
    assert_true(fcntl(fd, F_GETFD) >= 0);
    close(fd);
    mem_free(mem);
}

static void what_cannot_be_is_refused_with_its_reason(void **test)
{
    (void)test;
    struct err err = {0};
    struct engine_vm *vm = NULL;
    struct mem *mem = mem_new();
    struct engine_config config = {
        .mem = mem, .vcpus = 1, .kvm_path = "/dev/no-such-kvm", .kvm_fd = -1};
    assert_int_equal(engine_kvm.vm_new(&config, &vm, &err), -ENODEV);
    assert_non_null(strstr(err.text, "/dev/no-such-kvm"));
    config.irqchip = ENGINE_IRQCHIP_BOARD;
    assert_int_equal(engine_kvm.vm_new(&config, &vm, &err), -ENOTSUP);
    config.irqchip = ENGINE_IRQCHIP_NONE;
    config.vcpus = 0;
    assert_int_equal(engine_kvm.vm_new(&config, &vm, &err), -EINVAL);
    config.vcpus = ENGINE_VCPUS_MAX + 1;
    assert_int_equal(engine_kvm.vm_new(&config, &vm, &err), -EINVAL);
    config.vcpus = 1;
    config.kvm_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_true(engine_kvm.vm_new(&config, &vm, &err) < 0);
    assert_non_null(strstr(err.text, "/dev/kvm"));
    close(config.kvm_fd);
    assert_null(vm);
    mem_free(mem);
}

static void an_index_out_of_range_or_taken_is_refused(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct err err = {0};
    struct engine_vcpu *vcpu = NULL;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    assert_int_equal(engine_kvm.vcpu_new(guest.vm, 1, &vcpu, &err), -EINVAL);
    assert_int_equal(engine_kvm.vcpu_new(guest.vm, 0, &vcpu, &err), -EEXIST);
    assert_null(vcpu);
    guest_end(&guest);
}

static void an_nmi_is_delivered(void **test)
{
    (void)test;
    need_kvm();
    struct guest guest;
    struct cpu_state state;
    guest_make(&guest, ENGINE_IRQCHIP_NONE, 1);
    GUEST_LOAD(&guest, nmi);
    memcpy(mem_at(guest.mem, 0x2000, 32, true), guest_iret_out,
           (size_t)(guest_iret_out_end - guest_iret_out));
    le32_write(mem_at(guest.mem, 4 * 2, 4, true), 0x2000); /* IVT entry 2 */
    real_mode(&state);
    guest_set(&guest, 0, &state);
    engine_kvm.vcpu_signal(guest.vcpu[0], ENGINE_SIGNAL_NMI, 0);
    guest_get(&guest, 0, &state);
    assert_int_equal(state.pending.nmi_pending, 1);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    assert_int_equal(guest.count, 1);
    assert_int_equal(guest.log[0].address, 0x513);
    assert_int_equal(guest_run(&guest, 0).reason, ENGINE_EXIT_HALT);
    assert_int_equal(guest.count, 1); /* once */
    guest_end(&guest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ports_reach_the_board),
        cmocka_unit_test(string_instructions_transfer_each_item),
        cmocka_unit_test(mmio_reaches_the_board_in_its_size),
        cmocka_unit_test(writes_to_rom_are_mmio),
        cmocka_unit_test(nobody_at_home_reads_as_ones),
        cmocka_unit_test(a_triple_fault_is_a_shutdown),
        cmocka_unit_test(a_kick_ends_a_loop),
        cmocka_unit_test(a_kick_before_the_run_is_kept_once),
        cmocka_unit_test(a_kick_from_a_callback_lets_the_instruction_end),
        cmocka_unit_test(halted_without_irqchip_stays_halted),
        cmocka_unit_test(the_dirty_log_holds_what_was_written),
        cmocka_unit_test(everything_is_released),
        cmocka_unit_test(a_descriptor_given_is_used_and_kept_open),
        cmocka_unit_test(what_cannot_be_is_refused_with_its_reason),
        cmocka_unit_test(an_index_out_of_range_or_taken_is_refused),
        cmocka_unit_test(an_nmi_is_delivered),
    };
    int failed = cmocka_run_group_tests_name("kvm run", tests, NULL, NULL);
    return tests_result(failed, ARRAY_LEN(tests));
}
