/*
 * native.c: the arena of stubs, their handlers, and host exceptions (native.h).
 */
#include "cpu/soft/jit.h"
#include "cpu/soft/native_stub.h"

#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

enum {
    ARENA_SIZE = 4 << 20,
    ARENA_START = 64,     /* offset 0 means "no stub" */
    TABLE_SIZE = 1 << 16, /* a power of two */
    STUBS_MAX = TABLE_SIZE * 3 / 4,
    /* What one block may add at most: each stub with its header, rounded up. */
    ARENA_RESERVE = INSN_BLOCK_MAX * (NATIVE_STUB_MAX + 32),
};

struct stub_header { /* lies directly before the code */
    uint32_t length;
    uint32_t hash;
};

/* The two things that a signal handler can only find at file scope: the vCPU whose stubs this
 * thread runs, and whom SIGFPE went to before us. */
static _Thread_local struct soft_vcpu *native_current;
static struct sigaction native_previous;
static pthread_mutex_t native_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- host exceptions ---- */

/* Where a thread goes on after SIGFPE in a stub. The stub was entered as a function of (v, insn)
 * and has neither moved the stack nor stored any result. */
static _Noreturn void native_fault(struct soft_vcpu *v, const struct insn *insn, uint64_t trap)
{
    struct soft_native *native = v->native;
    if (native->has_avx)
        asm volatile("vzeroupper" ::: "memory");
    if (insn == native->call)
        insn = native->call_origin;
    if (trap == VECTOR_MF || trap == VECTOR_DE)
        soft_raise(v, insn, (enum vector)trap);
    soft_raise(v, insn, v->cr4 & CR4_OSXMMEXCPT ? VECTOR_XM : VECTOR_UD);
}

static void native_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *user = context;
    greg_t *regs = user->uc_mcontext.gregs;
    struct soft_vcpu *v = native_current;
    if (v && (uint64_t)regs[REG_RIP] - (uint64_t)v->native->execute_alias < ARENA_SIZE) {
        /* rdi and rsi are v and insn still; x87 and MXCSR come back with the frame, with the
         * status bits that the exception set. */
        regs[REG_RDX] = regs[REG_TRAPNO];
        regs[REG_RIP] = (greg_t)native_fault;
        return;
    }
    if (v && jit_redirect(v, regs))
        return;
    if (native_previous.sa_flags & SA_SIGINFO) {
        native_previous.sa_sigaction(number, info, context);
    } else if (native_previous.sa_handler == SIG_DFL || native_previous.sa_handler == SIG_IGN) {
        /* Returning runs the faulting instruction again, which then ends the process. */
        sigaction(SIGFPE, &native_previous, NULL);
    } else {
        native_previous.sa_handler(number);
    }
}

void native_install(void)
{
    struct sigaction action = {.sa_sigaction = native_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction now;
    sigemptyset(&action.sa_mask);
    pthread_mutex_lock(&native_lock);
    sigaction(SIGFPE, NULL, &now);
    /* Somebody may have put another handler in its place since. */
    if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != native_signal)
        sigaction(SIGFPE, &action, &native_previous);
    pthread_mutex_unlock(&native_lock);
}

/* ---- what the guest's CPUID offers ---- */

enum cpuid_register { EAX, EBX, ECX, EDX };

static const struct isa_feature {
    uint8_t isa; /* ZydisISASet */
    uint8_t reg, bit;
    uint32_t leaf, subleaf;
} isa_features[] = {
    {ZYDIS_ISA_SET_X87, EDX, 0, 1, 0},           {ZYDIS_ISA_SET_FCMOV, EDX, 15, 1, 0},
    {ZYDIS_ISA_SET_CMOV, EDX, 15, 1, 0},         {ZYDIS_ISA_SET_PENTIUMMMX, EDX, 23, 1, 0},
    {ZYDIS_ISA_SET_FXSAVE, EDX, 24, 1, 0},       {ZYDIS_ISA_SET_FXSAVE64, EDX, 24, 1, 0},
    {ZYDIS_ISA_SET_SSE, EDX, 25, 1, 0},          {ZYDIS_ISA_SET_SSEMXCSR, EDX, 25, 1, 0},
    {ZYDIS_ISA_SET_SSE_PREFETCH, EDX, 25, 1, 0}, {ZYDIS_ISA_SET_SSE2, EDX, 26, 1, 0},
    {ZYDIS_ISA_SET_SSE2MMX, EDX, 26, 1, 0},      {ZYDIS_ISA_SET_SSE3, ECX, 0, 1, 0},
    {ZYDIS_ISA_SET_SSE3X87, ECX, 0, 1, 0},       {ZYDIS_ISA_SET_PCLMULQDQ, ECX, 1, 1, 0},
    {ZYDIS_ISA_SET_SSSE3, ECX, 9, 1, 0},         {ZYDIS_ISA_SET_SSSE3MMX, ECX, 9, 1, 0},
    {ZYDIS_ISA_SET_FMA, ECX, 12, 1, 0},          {ZYDIS_ISA_SET_SSE4, ECX, 19, 1, 0},
    {ZYDIS_ISA_SET_SSE42, ECX, 20, 1, 0},        {ZYDIS_ISA_SET_MOVBE, ECX, 22, 1, 0},
    {ZYDIS_ISA_SET_POPCNT, ECX, 23, 1, 0},       {ZYDIS_ISA_SET_AES, ECX, 25, 1, 0},
    {ZYDIS_ISA_SET_XSAVE, ECX, 26, 1, 0},        {ZYDIS_ISA_SET_AVX, ECX, 28, 1, 0},
    {ZYDIS_ISA_SET_AVXAES, ECX, 25, 1, 0},       {ZYDIS_ISA_SET_F16C, ECX, 29, 1, 0},
    {ZYDIS_ISA_SET_RDRAND, ECX, 30, 1, 0},       {ZYDIS_ISA_SET_BMI1, EBX, 3, 7, 0},
    {ZYDIS_ISA_SET_AVX2, EBX, 5, 7, 0},          {ZYDIS_ISA_SET_AVX2GATHER, EBX, 5, 7, 0},
    {ZYDIS_ISA_SET_BMI2, EBX, 8, 7, 0},          {ZYDIS_ISA_SET_RDSEED, EBX, 18, 7, 0},
    {ZYDIS_ISA_SET_ADOX_ADCX, EBX, 19, 7, 0},    {ZYDIS_ISA_SET_SHA, EBX, 29, 7, 0},
    {ZYDIS_ISA_SET_GFNI, ECX, 8, 7, 0},          {ZYDIS_ISA_SET_AVX_GFNI, ECX, 8, 7, 0},
    {ZYDIS_ISA_SET_VAES, ECX, 9, 7, 0},          {ZYDIS_ISA_SET_VPCLMULQDQ, ECX, 10, 7, 0},
    {ZYDIS_ISA_SET_XSAVEOPT, EAX, 0, 0xd, 1},
};

/* Integer instructions of every 64-bit CPU. Those that came with LZCNT run whatever CPUID says:
 * a CPU without it takes their bytes for BSR, and so does the host that we run on. */
static const uint8_t isa_always[] = {
    ZYDIS_ISA_SET_I86,      ZYDIS_ISA_SET_I186,        ZYDIS_ISA_SET_I386,  ZYDIS_ISA_SET_I486,
    ZYDIS_ISA_SET_I486REAL, ZYDIS_ISA_SET_PENTIUMREAL, ZYDIS_ISA_SET_PPRO,  ZYDIS_ISA_SET_LAHF,
    ZYDIS_ISA_SET_FAT_NOP,  ZYDIS_ISA_SET_LONGMODE,    ZYDIS_ISA_SET_LZCNT,
};

static void isa_fill(struct soft_native *native, const struct cpuid *cpuid)
{
    for (unsigned i = 0; i < ARRAY_LEN(isa_always); i++)
        native->isa[isa_always[i]] = true;
    for (unsigned i = 0; i < ARRAY_LEN(isa_features); i++) {
        const struct isa_feature *feature = &isa_features[i];
        struct cpuid_leaf leaf = cpuid_find(cpuid, feature->leaf, feature->subleaf);
        uint32_t regs[] = {leaf.eax, leaf.ebx, leaf.ecx, leaf.edx};
        native->isa[feature->isa] = regs[feature->reg] >> feature->bit & 1;
    }
    native->isa[ZYDIS_ISA_SET_AVXAES] &= native->isa[ZYDIS_ISA_SET_AVX];
    /* "AuthenticAMD", "HygonGenuine" */
    uint32_t vendor = cpuid_find(cpuid, 0, 0).ebx;
    native->sha_unaligned = vendor == 0x68747541 || vendor == 0x6f677948;
}

static bool host_has_avx(void)
{
    unsigned eax, ebx, ecx, edx, xcr0, high;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) ||
        (ecx & (bit_AVX | bit_OSXSAVE)) != (bit_AVX | bit_OSXSAVE))
        return false;
    asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    return (xcr0 & 6) == 6;
}

/* ---- the arena ---- */

static int arena_map(struct soft_native *native, struct err *err)
{
    int fd = memfd_create("native code", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create("native code", MFD_CLOEXEC);
    if (fd < 0)
        return err_errno(err, errno, "cannot make memory for native code");
    int r = 0;
    if (ftruncate(fd, ARENA_SIZE) < 0)
        r = err_errno(err, errno, "cannot size memory for native code");
    if (r == 0) {
        void *to = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        native->write_alias = to == MAP_FAILED ? NULL : to;
        if (native->write_alias) {
            to = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
            native->execute_alias = to == MAP_FAILED ? NULL : to;
        }
        if (!native->execute_alias)
            r = err_errno(err, errno, "cannot map memory for native code");
    }
    close(fd);
    return r;
}

static void native_return(struct soft_vcpu *v, const struct insn *insn)
{
    (void)v;
    (void)insn;
}

int native_new(struct soft_vcpu *v, struct err *err)
{
    struct soft_native *native = aligned_alloc(64, align_up(sizeof *native, 64));
    if (!native)
        return err_errno(err, ENOMEM, "native code");
    memset(native, 0, sizeof *native);
    v->native = native;
    native->table = calloc(TABLE_SIZE, sizeof *native->table);
    int r = native->table ? arena_map(native, err) : err_errno(err, ENOMEM, "native code");
    if (r < 0) {
        native_free(v);
        return r;
    }
    native->used = ARENA_START;
    native->call[1].run = native_return;
    native->has_avx = host_has_avx();
    isa_fill(native, &v->vm->cpuid);
    memset(v->fpu, 0, sizeof v->fpu);
    le16_write(v->fpu, NATIVE_FCW_INIT);
    le32_write(v->fpu + 24, NATIVE_MXCSR_INIT);
    le32_write(v->fpu + 28, NATIVE_MXCSR_MASK);
    native_install();
    return 0;
}

void native_free(struct soft_vcpu *v)
{
    struct soft_native *native = v->native;
    if (!native)
        return;
    if (native->execute_alias)
        munmap(native->execute_alias, ARENA_SIZE);
    if (native->write_alias)
        munmap(native->write_alias, ARENA_SIZE);
    free(native->table);
    free(native);
    v->native = NULL;
}

bool native_full(const struct soft_vcpu *v)
{
    const struct soft_native *native = v->native;
    return native->used + ARENA_RESERVE > ARENA_SIZE || native->count + INSN_BLOCK_MAX > STUBS_MAX;
}

void native_reset(struct soft_vcpu *v)
{
    struct soft_native *native = v->native;
    memset(native->table, 0, TABLE_SIZE * sizeof *native->table);
    native->used = ARENA_START;
    native->count = 0;
}

static uint32_t stub_hash(const struct native_stub *stub)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (unsigned i = 0; i < stub->length; i++)
        hash = (hash ^ stub->bytes[i]) * 16777619u;
    return hash;
}

/* The stub's place in the execute alias; it is copied there when no equal one exists. */
static void *arena_place(struct soft_native *native, const struct native_stub *stub)
{
    uint32_t hash = stub_hash(stub);
    unsigned slot = hash % TABLE_SIZE;
    while (native->table[slot] != 0) {
        uint32_t offset = native->table[slot];
        struct stub_header header;
        memcpy(&header, native->write_alias + offset - sizeof header, sizeof header);
        if (header.hash == hash && header.length == stub->length &&
            memcmp(native->write_alias + offset, stub->bytes, stub->length) == 0)
            return native->execute_alias + offset;
        slot = (slot + 1) % TABLE_SIZE;
    }
    struct stub_header header = {.length = stub->length, .hash = hash};
    uint32_t offset = (uint32_t)align_up(native->used + sizeof header, 16);
    assert(offset + stub->length <= ARENA_SIZE && native->count < STUBS_MAX);
    memcpy(native->write_alias + offset - sizeof header, &header, sizeof header);
    memcpy(native->write_alias + offset, stub->bytes, stub->length);
    native->used = offset + stub->length;
    native->table[slot] = offset;
    native->count++;
    return native->execute_alias + offset;
}

/* ---- entering and leaving ---- */

void native_enter(struct soft_vcpu *v)
{
    assert(!native_current);
    asm volatile("fxrstor64 %0" ::"m"(v->fpu)
                 : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                   "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    native_current = v;
}

void native_leave(struct soft_vcpu *v)
{
    static const uint32_t mxcsr = NATIVE_MXCSR_INIT;
    assert(native_current == v);
    native_current = NULL;
    asm volatile("fxsave64 %0; fninit; ldmxcsr %1" : "=m"(v->fpu) : "m"(mxcsr) : "memory");
    memset(v->fpu + 6, 0, 18); /* FOP, FIP, FDP: addresses of ours */
    le32_write(v->fpu + 28, NATIVE_MXCSR_MASK);
    memset(v->fpu + 160, 0, sizeof v->fpu - 160);
}

/* ---- handlers ---- */

uint64_t native_linear(struct soft_vcpu *v, const struct insn *insn, unsigned size, bool write)
{
    if (insn->aux & NATIVE_WAITS) {
        uint16_t status;
        asm volatile("fnstsw %0" : "=a"(status));
        if (status & 0x80) /* ES: comes before any fault of the operand */
            soft_raise(v, insn, VECTOR_MF);
    }
    uint64_t linear = insn_linear(v, insn, size, write);
    if (linear & (insn->aux >> NATIVE_ALIGN_SHIFT & 63))
        soft_raise_error(v, insn, VECTOR_GP, 0);
    if (linear & (insn->aux >> NATIVE_AC_SHIFT & 15))
        soft_raise_error(v, insn, VECTOR_AC, 0);
    return linear;
}

/* Runs a stub and comes back. */
static void native_call(struct soft_vcpu *v, const struct insn *insn, void *memory)
{
    native_code *code = (native_code *)insn->data;
    v->native->call_origin = insn;
    code(v, v->native->call, memory);
}

static __attribute__((noinline)) void native_load_slow(struct soft_vcpu *v, const struct insn *insn)
{
    native_code *code = (native_code *)insn->data;
    unsigned size = (uint16_t)insn->aux;
    uint64_t linear = native_linear(v, insn, size, false);
    void *memory = native_direct(v, linear, size, false);
    if (!memory || (linear & insn->a)) {
        memory = v->native->bounce;
        soft_load_bytes(v, insn, linear, memory, size, insn->seg);
    }
    return code(v, insn, memory);
}

static void native_run_load(struct soft_vcpu *v, const struct insn *insn)
{
    native_code *code = (native_code *)insn->data;
    void *memory = native_fast(v, insn, false);
    if (likely(memory))
        return code(v, insn, memory);
    return native_load_slow(v, insn);
}

/* An x87 instruction may leave its destination alone because of an unmasked exception; what is
 * stored afterwards must then be what was there. */
static void native_seed(struct soft_vcpu *v, const struct insn *insn, uint64_t linear,
                        unsigned size)
{
    uint16_t control;
    asm volatile("fnstcw %0" : "=m"(control));
    if ((insn->aux & NATIVE_X87) && (control & 0x3f) != 0x3f)
        soft_load_bytes(v, insn, linear, v->native->bounce, size, insn->seg);
}

static __attribute__((noinline)) void native_store_slow(struct soft_vcpu *v,
                                                        const struct insn *insn)
{
    native_code *code = (native_code *)insn->data;
    unsigned size = (uint16_t)insn->aux;
    uint64_t linear = native_linear(v, insn, size, true);
    soft_probe_write(v, insn, linear, size, insn->seg);
    void *memory = native_direct(v, linear, size, true);
    if (memory)
        return code(v, insn, memory);
    native_seed(v, insn, linear, size);
    native_call(v, insn, v->native->bounce);
    soft_store_bytes(v, insn, linear, v->native->bounce, size, insn->seg);
    NEXT(v, insn);
}

static void native_run_store(struct soft_vcpu *v, const struct insn *insn)
{
    native_code *code = (native_code *)insn->data;
    void *memory = native_fast(v, insn, true);
    if (likely(memory))
        return code(v, insn, memory);
    return native_store_slow(v, insn);
}

static void native_run_modify(struct soft_vcpu *v, const struct insn *insn)
{
    native_code *code = (native_code *)insn->data;
    unsigned size = (uint16_t)insn->aux;
    uint64_t linear = native_linear(v, insn, size, true);
    void *memory = rmw_at(v, insn, linear, size, insn->seg);
    if (likely(memory))
        return code(v, insn, memory);
    soft_probe_write(v, insn, linear, size, insn->seg);
    soft_load_bytes(v, insn, linear, v->native->bounce, size, insn->seg);
    native_call(v, insn, v->native->bounce);
    soft_store_bytes(v, insn, linear, v->native->bounce, size, insn->seg);
    NEXT(v, insn);
}

/* ---- binding ---- */

enum native_kind { KIND_INTEGER, KIND_VEX_INTEGER, KIND_X87, KIND_MMX, KIND_SSE, KIND_AVX };

static enum native_kind native_kind(const struct decoder *decoder)
{
    const ZydisDecodedInstruction *zydis = decoder->zydis;
    if (zydis->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        return zydis->meta.isa_set == ZYDIS_ISA_SET_BMI1 ||
                       zydis->meta.isa_set == ZYDIS_ISA_SET_BMI2
                   ? KIND_VEX_INTEGER
                   : KIND_AVX;
    if (zydis->meta.isa_ext == ZYDIS_ISA_EXT_X87 || zydis->mnemonic == ZYDIS_MNEMONIC_FISTTP)
        return KIND_X87;
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_STMXCSR:
    case ZYDIS_MNEMONIC_CVTPS2PI: /* whose memory forms name no XMM register */
    case ZYDIS_MNEMONIC_CVTTPS2PI:
    case ZYDIS_MNEMONIC_CVTPD2PI:
    case ZYDIS_MNEMONIC_CVTTPD2PI: return KIND_SSE;
    case ZYDIS_MNEMONIC_EMMS: return KIND_MMX;
    default: break;
    }
    bool mmx = false;
    for (unsigned i = 0; i < zydis->operand_count; i++) {
        if (decoder->operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        ZydisRegisterClass class = ZydisRegisterGetClass(decoder->operands[i].reg.value);
        if (class == ZYDIS_REGCLASS_XMM)
            return KIND_SSE;
        mmx |= class == ZYDIS_REGCLASS_MMX;
    }
    return mmx ? KIND_MMX : KIND_INTEGER;
}

bool native_allowed(struct decoder *decoder)
{
    uint32_t mode = decoder->mode;
    bool undefined = !decoder->v->native->isa[decoder->zydis->meta.isa_set];
    bool no_device = mode & MODE_TS;
    bool flat = (mode & MODE_PROTECTED) && !(mode & MODE_VM86);
    switch (native_kind(decoder)) {
    case KIND_INTEGER: no_device = false; break;
    case KIND_VEX_INTEGER:
        undefined |= !flat;
        no_device = false;
        break;
    case KIND_X87:
        if (decoder->zydis->mnemonic == ZYDIS_MNEMONIC_FWAIT)
            no_device = (mode & MODE_MP) && (mode & MODE_TS);
        else
            no_device |= (mode & MODE_EM) != 0;
        break;
    case KIND_MMX: undefined |= (mode & MODE_EM) != 0; break;
    case KIND_SSE: undefined |= (mode & MODE_EM) || !(mode & MODE_SSE); break;
    case KIND_AVX: undefined |= !flat || !(mode & MODE_AVX); break;
    }
    decoder->insn->run = undefined ? op_undefined : no_device ? op_no_device : NULL;
    return !undefined && !no_device;
}

const ZydisDecodedOperand *native_memory_operand(const struct decoder *decoder)
{
    for (unsigned i = 0; i < decoder->zydis->operand_count; i++)
        if (decoder->operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            return &decoder->operands[i];
    return NULL;
}

/* Does the instruction raise a pending x87 exception before it does anything? */
static bool waits(const struct decoder *decoder)
{
    switch (decoder->zydis->mnemonic) {
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE: return false;
    default: break;
    }
    for (unsigned i = 0; i < decoder->zydis->operand_count; i++)
        if (decoder->operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(decoder->operands[i].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return native_kind(decoder) == KIND_X87;
}

void native_set_memory(struct decoder *decoder, unsigned size, unsigned align)
{
    unsigned natural = size >= 16 ? 16 : size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
    uint32_t aux = size | (align - 1) << NATIVE_ALIGN_SHIFT;
    if (decoder->mode & MODE_AC)
        aux |= (natural - 1) << NATIVE_AC_SHIFT;
    if (native_kind(decoder) == KIND_X87)
        aux |= NATIVE_X87;
    if (waits(decoder))
        aux |= NATIVE_WAITS;
    decoder->insn->aux = aux;
    decoder->insn->a = (uint8_t)(aux >> NATIVE_ALIGN_SHIFT | (aux >> NATIVE_AC_SHIFT & 15));
}

/* The alignment that a vector memory operand must have, SDM vol. 1, tables 14-21 and 14-22: legacy
 * SSE wants all 16-byte operands aligned but for the moves that say otherwise; VEX wants none
 * aligned but those of the moves that say so. */
unsigned native_alignment(const ZydisDecodedInstruction *zydis, unsigned size)
{
    switch (zydis->mnemonic) {
    case ZYDIS_MNEMONIC_VMOVAPS:
    case ZYDIS_MNEMONIC_VMOVAPD:
    case ZYDIS_MNEMONIC_VMOVDQA:
    case ZYDIS_MNEMONIC_VMOVNTPS:
    case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ:
    case ZYDIS_MNEMONIC_VMOVNTDQA: return size;
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM: return 1;
    default: return zydis->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && size == 16 ? 16 : 1;
    }
}

void native_bind(struct decoder *decoder)
{
    struct insn *insn = decoder->insn;
    struct native_stub stub;
    if ((insn->flags & INSN_LOCK) || !native_allowed(decoder) || !native_encode(decoder, &stub))
        return;
    insn->data = arena_place(decoder->v->native, &stub);
    if (stub.memory_size == 0) {
        insn->run = (insn_run *)insn->data;
        return;
    }
    native_set_memory(decoder, stub.memory_size, native_alignment(decoder->zydis, stub.memory_size));
    if (decoder->zydis->meta.isa_set == ZYDIS_ISA_SET_SHA && decoder->v->native->sha_unaligned)
        insn->aux &= (1u << NATIVE_ALIGN_SHIFT) - 1; /* insn->a sends it to the bounce buffer */
    insn->run = !stub.memory_write  ? native_run_load
                : !stub.memory_read ? native_run_store
                                    : native_run_modify;
}
