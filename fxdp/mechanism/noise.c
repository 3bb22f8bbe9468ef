// The noise of `fxdp.mechanism.keystream`, bits and numbers in one pass: AES-128 in counter mode
// (NIST SP 800-38A) by the processor's own instructions, and the method of Box and Muller (1958)
// by polynomials. The bits are those of keystream.Bits; a number differs from that of
// keystream.normals by its rounding. Compiled and compared with it by `fxdp.mechanism.native`.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if !defined(__AES__)
#error "no instructions for AES"
#endif

enum { GROUP = 1024, HALF = 512, MOST_TERMS = 4 };

// The cipher. ----------------------------------------------------------------------------------

typedef struct { __m128i of[11]; } Keys;

static inline __m128i expanded(__m128i key, __m128i made) {
    made = _mm_shuffle_epi32(made, 0xff);
    for (int i = 0; i < 3; i++) key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    return _mm_xor_si128(key, made);
}

static Keys keys_of(const uint8_t *secret) {
    Keys k;
    __m128i key = k.of[0] = _mm_loadu_si128((const __m128i *)secret);
#define ROUND(i, constant) \
    k.of[i] = key = expanded(key, _mm_aeskeygenassist_si128(key, constant))
    ROUND(1, 0x01); ROUND(2, 0x02); ROUND(3, 0x04); ROUND(4, 0x08); ROUND(5, 0x10);
    ROUND(6, 0x20); ROUND(7, 0x40); ROUND(8, 0x80); ROUND(9, 0x1b); ROUND(10, 0x36);
#undef ROUND
    return k;
}

// Encrypts the counters [number, first), [number, first + 1) ..., big-endian; a multiple of 32.
static void bits_of(const Keys *k, uint64_t number, uint64_t first, int64_t blocks, uint8_t *out) {
    const uint64_t upper = __builtin_bswap64(number);
#if defined(__VAES__) && defined(__AVX512F__) && defined(__AVX512BW__)
    __m512i round[11];
    for (int i = 0; i < 11; i++) round[i] = _mm512_broadcast_i32x4(k->of[i]);
    const __m128i turned = _mm_set_epi8(8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i turn = _mm512_broadcast_i32x4(turned);
    const __m512i four = _mm512_set_epi64(4, 0, 4, 0, 4, 0, 4, 0);
    __m512i at = _mm512_set_epi64(first + 3, upper, first + 2, upper, first + 1, upper, first, upper);
    for (int64_t b = 0; b < blocks; b += 32) {
        __m512i x[8];
        for (int i = 0; i < 8; i++) {
            x[i] = _mm512_xor_si512(_mm512_shuffle_epi8(at, turn), round[0]);
            at = _mm512_add_epi64(at, four);
        }
        for (int r = 1; r < 10; r++)
            for (int i = 0; i < 8; i++) x[i] = _mm512_aesenc_epi128(x[i], round[r]);
        for (int i = 0; i < 8; i++)
            _mm512_storeu_si512(out + 16 * b + 64 * i, _mm512_aesenclast_epi128(x[i], round[10]));
    }
#else
    for (int64_t b = 0; b < blocks; b += 8) {
        __m128i x[8];
        for (int i = 0; i < 8; i++) {
            const uint64_t counter = __builtin_bswap64(first + b + i);
            x[i] = _mm_xor_si128(_mm_set_epi64x((int64_t)counter, (int64_t)upper), k->of[0]);
        }
        for (int r = 1; r < 10; r++)
            for (int i = 0; i < 8; i++) x[i] = _mm_aesenc_si128(x[i], k->of[r]);
        for (int i = 0; i < 8; i++)
            _mm_storeu_si128((__m128i *)(out + 16 * (b + i)), _mm_aesenclast_si128(x[i], k->of[10]));
    }
#endif
}

// Normal numbers. ------------------------------------------------------------------------------
// The logarithm: u = 2^e m with m in [sqrt(1/2), sqrt(2)), and log m = 2 artanh((m-1)/(m+1)).
// Sine and cosine: of a quarter turn less than half of one away from a whole number of them.
// Coefficients are those of the Taylor series, whose first term left out is below half a unit in
// the last place on these ranges; in float32 the shorter sums are.

#define PI_HALF 1.5707963267948966

static inline float log_f(float u) {
    uint32_t w;
    memcpy(&w, &u, 4);
    const int32_t shifted = (int32_t)(w - 0x3f3504f3u);  // of sqrt(1/2)
    const int32_t e = shifted >> 23;
    w -= (uint32_t)e << 23;
    float m;
    memcpy(&m, &w, 4);
    const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
    float p = 1.0f / 9;
    p = p * z + 1.0f / 7;
    p = p * z + 1.0f / 5;
    p = p * z + 1.0f / 3;
    return e * 0.693147180559945f + 2 * (s + s * z * p);
}

static inline void turn_f(float half_turns, float *cosine, float *sine) {
    const float quarters = 2 * half_turns, whole = rintf(quarters);
    const int32_t q = (int32_t)whole;
    const float r = (quarters - whole) * (float)PI_HALF, z = r * r;
    float s = 1.0f / 362880, c = 1.0f / 40320;
    s = s * z - 1.0f / 5040;
    s = s * z + 1.0f / 120;
    s = s * z - 1.0f / 6;
    s = r + r * z * s;
    c = c * z - 1.0f / 720;
    c = c * z + 1.0f / 24;
    c = c * z - 0.5f;
    c = 1 + z * c;
    const float a = q & 1 ? s : c, b = q & 1 ? c : s;
    *cosine = (q + 1) & 2 ? -a : a;
    *sine = q & 2 ? -b : b;
}

static inline double log_d(double u) {
    uint64_t w;
    memcpy(&w, &u, 8);
    const int64_t shifted = (int64_t)(w - 0x3fe6a09e667f3bcdull);
    const int64_t e = shifted >> 52;
    w -= (uint64_t)e << 52;
    double m;
    memcpy(&m, &w, 8);
    const double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 1.0 / 21;
    for (int odd = 19; odd >= 3; odd -= 2) p = p * z + 1.0 / odd;
    return e * 0.6931471805599453094 + 2 * (s + s * z * p);
}

static inline void turn_d(double half_turns, double *cosine, double *sine) {
    const double quarters = 2 * half_turns, whole = rint(quarters);
    const int64_t q = (int64_t)whole;
    const double r = (quarters - whole) * PI_HALF, z = r * r;
    double s = 1.0 / 355687428096000.0, c = -1.0 / 6402373705728000.0;
    s = s * z - 1.0 / 1307674368000.0;
    s = s * z + 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = r + r * z * s;
    c = c * z + 1.0 / 20922789888000.0;
    c = c * z - 1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 0.5;
    c = 1 + z * c;
    const double a = q & 1 ? s : c, b = q & 1 ? c : s;
    *cosine = (q + 1) & 2 ? -a : a;
    *sine = q & 2 ? -b : b;
}

// One group of normal numbers from bits [2, HALF].
void fxdp_narrow_group(const int32_t *bits, float *restrict out) {
    for (int h = 0; h < HALF; h++) {
        const float u = (fabsf((float)bits[h]) + 0.25f) * 0x1p-31f;
        const float length = sqrtf(fabsf(2 * log_f(u)));
        float c, s;
        turn_f((float)bits[HALF + h] * 0x1p-31f, &c, &s);
        out[h] = c * length;
        out[HALF + h] = s * length;
    }
}

// One group from bits [terms, 2, HALF]: sums of so many numbers, over the root of how many.
void fxdp_wide_group(const int64_t *bits, int terms, double *restrict out) {
    memset(out, 0, GROUP * sizeof(double));
    for (int k = 0; k < terms; k++, bits += GROUP)
        for (int h = 0; h < HALF; h++) {
            const double u = (fabs((double)bits[h]) + 0.25) * 0x1p-63;
            const double length = sqrt(fabs(2 * log_d(u)));
            double c, s;
            turn_d((double)bits[HALF + h] * 0x1p-63, &c, &s);
            out[h] += c * length;
            out[HALF + h] += s * length;
        }
    if (terms > 1)
        for (int h = 0; h < GROUP; h++) out[h] /= sqrt((double)terms);
}

#define DEFINE(NAME, TYPE)                                                                        \
    static void NAME##_of(const Keys *keys, TYPE *restrict x, int64_t n, int64_t start,           \
                          uint64_t number, double scale, double factor, int terms, int threads) { \
        const int64_t first = start / GROUP, last = (start + n + GROUP - 1) / GROUP;              \
        const int is_wide = terms > 1 || sizeof(TYPE) == 8;                                       \
        const int64_t blocks = is_wide ? terms * GROUP / 2 : GROUP / 4;                           \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")        \
        for (int64_t g = first; g < last; g++) {                                                  \
            _Alignas(64) uint8_t bits[MOST_TERMS * GROUP * 8];                                    \
            _Alignas(64) double drawn[GROUP];                                                     \
            bits_of(keys, number, (uint64_t)(g * blocks), blocks, bits);                          \
            const int64_t from = g == first ? start - g * GROUP : 0;                              \
            const int64_t to = g == last - 1 ? start + n - g * GROUP : GROUP;                     \
            TYPE *part = x + (g * GROUP - start);                                                 \
            if (is_wide) {                                                                        \
                fxdp_wide_group((const int64_t *)bits, terms, drawn);                             \
                for (int64_t i = from; i < to; i++)                                               \
                    part[i] = (TYPE)(part[i] + drawn[i] * scale) * (TYPE)factor;                  \
            } else {                                                                              \
                float *single = (float *)drawn;                                                   \
                const float by = (float)scale;                                                    \
                fxdp_narrow_group((const int32_t *)bits, single);                                 \
                for (int64_t i = from; i < to; i++)                                               \
                    part[i] = (part[i] + single[i] * by) * (TYPE)factor;                          \
            }                                                                                     \
        }                                                                                         \
    }                                                                                             \
    /* x[i] becomes (x[i] + scale xi) * factor, for elements start ... start + n of a parameter. */ \
    void NAME(TYPE *restrict x, int64_t n, int64_t start, const uint8_t *secret, uint64_t number, \
              double scale, double factor, int terms, int threads) {                              \
        const Keys keys = keys_of(secret);                                                        \
        NAME##_of(&keys, x, n, start, number, scale, factor, terms, threads);                     \
    }                                                                                             \
    /* The same for all elements of `count` parameters. */                                        \
    void NAME##_of_all(int count, TYPE *const *xs, const int64_t *ns, const uint64_t *numbers,    \
                       const uint8_t *secret, double scale, double factor, int terms) {           \
        const Keys keys = keys_of(secret);                                                        \
        for (int k = 0; k < count; k++)                                                           \
            NAME##_of(&keys, xs[k], ns[k], 0, numbers[k], scale, factor, terms, 1);               \
    }

DEFINE(fxdp_noise_float, float)
DEFINE(fxdp_noise_double, double)
