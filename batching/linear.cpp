// A linear layer over packed weights, `act(x @ W.T + bias)`, for processors with AVX512-BF16 and VNNI: in bfloat16; in int8
// or, where there is AVX512-FP16, in half precision, both with a scale for each column of the result and one for each row
// of `x`. Plain C functions over raw pointers.
//
// A decode step is bound by reading its weights, so they lie in the order in which they are read: panels of columns, within
// a panel word by word of `x`. A word is 32 bits: two bfloat16, four int8, or one half twice. While one panel is multiplied
// the next is asked for, so that the memory and the multipliers work at the same time.
//
// Each number of the result is summed by itself, in the order of K: a row's bits do not depend on its neighbours.
//
// M rows, K numbers of each, W words of each; N columns of the result in P panels

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own header of these instructions
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

extern "C" {
extern const bool is_intel = __builtin_cpu_is("intel");
}

namespace {

constexpr int LANES = 16;
constexpr int PIECES = 3;       // registers that a panel's columns fill
constexpr int ROWS = 8;         // multiplied together: their ROWS * PIECES sums are 24 of the 32 registers
constexpr int CACHE_LINE = 64;  // bytes, as many as a register has
constexpr int OFFSET = 128;     // added to an int8 of `x`: the instruction wants them unsigned
constexpr int LARGEST = 127;    // an int8's magnitude

// What belongs to the columns, each array filled up to whole panels. bfloat16 has no `scales`, int8 alone has `totals`.
struct Columns {
    const __m512i* panels;  // [P, W, PIECES]
    const float* bias;      // [P * columns of a panel]
    const float* scales;    // as many
    const int32_t* totals;  // as many, the sums of the weights
    int64_t N;
};

// How a word of `x` is multiplied with a register of weights, and a row's sums become LANES numbers of the result.
// `GROUPS`: how many times LANES columns a register has. `RUN`: after so many words the sums go over into the totals.
struct BFloat16 {
    typedef __m512 Sums;
    typedef __m512 Totals;
    static constexpr int GROUPS = 1, RUN = 0;
    static void add_products(Sums& sums, __m512i x, __m512i weights) {
        sums = _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)weights);
    }
    static void take(Totals& totals, Sums sums) { totals = sums; }
    static __m512 finish(const Totals& totals, int, float, const Columns&, int64_t) { return totals; }
};

struct Int8 {
    typedef __m512i Sums;
    typedef __m512i Totals;
    static constexpr int GROUPS = 1, RUN = 0;
    static void add_products(Sums& sums, __m512i x, __m512i weights) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weights));  // GCC 12 spills all sums around the intrinsic
    }
    static void take(Totals& totals, Sums sums) { totals = sums; }
    static __m512 finish(const Totals& totals, int, float row_scale, const Columns& columns, int64_t column) {
        const __m512i offset = _mm512_mullo_epi32(_mm512_loadu_si512(columns.totals + column), _mm512_set1_epi32(OFFSET));
        const __m512 scales = _mm512_loadu_ps(columns.scales + column) * _mm512_set1_ps(row_scale);
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(totals, offset)) * scales;
    }
};

#ifdef __AVX512FP16__
// Intel's processors leave bfloat16 to AMX: without it they multiply four times as many halves in the same time. A half has
// all of a bfloat16's digits, and the scales keep its exponents in reach. A run's sums are rounded to halves on their way,
// the runs are added in float32. Where the result is rounded to bfloat16, runs of 32 change it by half of what that does;
// where it is not, they are shorter.
template <int LENGTH>
struct Half {
    typedef __m512h Sums;
    struct Totals {
        __m512 of_group[2];
    };
    static constexpr int GROUPS = 2, RUN = LENGTH;
    static void add_products(Sums& sums, __m512i x, __m512i weights) {
        sums = _mm512_fmadd_ph((__m512h)x, (__m512h)weights, sums);
    }
    static void take(Totals& totals, Sums sums) {
        totals.of_group[0] += _mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256((__m512i)sums));
        totals.of_group[1] += _mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64((__m512i)sums, 1));
    }
    static __m512 finish(const Totals& totals, int group, float row_scale, const Columns& columns, int64_t column) {
        return totals.of_group[group] * _mm512_loadu_ps(columns.scales + column) * _mm512_set1_ps(row_scale);
    }
};
#endif

inline void store(float* target, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(target, mask, x); }

inline void store(uint16_t* target, __m512 x, __mmask16 mask) {
    _mm256_mask_storeu_epi16(target, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

// e^x to about 1e-7 of itself: 2^n times Cephes' polynomial. NaN stays NaN, since it comes second in min and max.
inline __m512 exp(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-88), _mm512_min_ps(_mm512_set1_ps(88), x));
    const __m512 n = _mm512_roundscale_ps(x * _mm512_set1_ps(1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = (x - n * _mm512_set1_ps(0.693359375f)) + n * _mm512_set1_ps(2.12194440e-4f);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + _mm512_set1_ps(c);
    return _mm512_scalef_ps(p * r * r + r + _mm512_set1_ps(1), n);
}

// GPT-2's GELU, x / 2 * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3), written as x / (1 + e^-2u).
inline __m512 gelu(__m512 x) {
    const __m512 u = x * (_mm512_set1_ps(0.7978845608f) + x * x * _mm512_set1_ps(0.7978845608f * 0.044715f));
    return x / (_mm512_set1_ps(1) + exp(_mm512_set1_ps(-2) * u));
}

// R rows times one panel. Meanwhile the memory is asked for `lines` cache lines of `ahead` for each word.
template <typename Number, int R, typename Out>
void multiply(const int32_t* x, const float* row_scales, int64_t W, const Columns& columns, int64_t panel, const char* ahead,
              int lines, bool has_gelu, Out* y) {
    const __m512i* const weights = columns.panels + panel * W * PIECES;
    typename Number::Totals totals[R][PIECES]{};
    for (int64_t w = 0; w < W;) {
        typename Number::Sums sums[R][PIECES]{};
        for (const int64_t end = Number::RUN ? std::min(w + Number::RUN, W) : W; w < end; w++) {
            for (int i = 0; i < lines; i++, ahead += CACHE_LINE) _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const __m512i word = _mm512_set1_epi32(x[r * W + w]);
#pragma GCC unroll 3
                for (int i = 0; i < PIECES; i++) Number::add_products(sums[r][i], word, weights[w * PIECES + i]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 3
            for (int i = 0; i < PIECES; i++) Number::take(totals[r][i], sums[r][i]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 3
        for (int i = 0; i < PIECES; i++)
#pragma GCC unroll 2
            for (int group = 0; group < Number::GROUPS; group++) {
                const int64_t column = ((panel * PIECES + i) * Number::GROUPS + group) * LANES;
                const int64_t num_left = columns.N - column;
                __m512 z = Number::finish(totals[r][i], group, row_scales ? row_scales[r] : 1, columns, column);
                z += _mm512_loadu_ps(columns.bias + column);
                const __mmask16 mask = num_left >= LANES ? 0xffff : num_left > 0 ? (1 << num_left) - 1 : 0;
                store(y + r * columns.N + column, has_gelu ? gelu(z) : z, mask);
            }
}

template <typename Number, typename Out>
void linear(const int32_t* x, const float* row_scales, int64_t M, int64_t W, const Columns& columns, bool has_gelu, Out* y) {
    constexpr decltype(&multiply<Number, 1, Out>) of_rows[ROWS + 1] = {
        nullptr, multiply<Number, 1, Out>, multiply<Number, 2, Out>, multiply<Number, 3, Out>, multiply<Number, 4, Out>,
        multiply<Number, 5, Out>, multiply<Number, 6, Out>, multiply<Number, 7, Out>, multiply<Number, 8, Out>};
    constexpr int WIDTH = PIECES * Number::GROUPS * LANES;
    const int64_t P = (columns.N + WIDTH - 1) / WIDTH, num_blocks = (M + ROWS - 1) / ROWS;
#pragma omp for schedule(guided)  // a thread that another process holds up leaves the rest to the others
    for (int64_t p = 0; p < P; p++)
        for (int64_t b = 0; b < num_blocks; b++) {
            // The first blocks ask for the next panel, PIECES lines a word, all together. One block alone only reads, and
            // AMD's processors foresee that.
            const int lines = num_blocks == 1 ? (is_intel ? PIECES : 0) : num_blocks == 2 ? 2 : b < PIECES ? 1 : 0;
            const char* const ahead = (const char*)(columns.panels + (p + 1) * W * PIECES) + b * W * lines * CACHE_LINE;
            const int64_t m = b * ROWS;
            of_rows[std::min<int64_t>(ROWS, M - m)](x + m * W, row_scales ? row_scales + m : nullptr, W, columns, p, ahead,
                                                    lines, has_gelu, y + m * columns.N);
        }
}

inline __m512 to_float(const uint16_t* x) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16);
}

// The bits of the largest of a row `[K]`, without its sign: bfloat16 are ordered as these are, infinity and NaN last.
uint16_t largest_of(const uint16_t* x, int64_t K) {
    uint16_t largest = 0;
    for (int64_t k = 0; k < K; k++) largest = std::max<uint16_t>(largest, x[k] & 0x7fff);
    return largest;
}

inline float float_of_bits(uint32_t bits) { return _mm_cvtss_f32((__m128)_mm_cvtsi32_si128(bits)); }

// One row `[K]` in int8, with OFFSET added; returns its scale, which is not finite if a number of the row is not.
float quantize(const uint16_t* x, int64_t K, uint8_t* words) {
    const float scale = float_of_bits(largest_of(x, K) << 16) / LARGEST;
    const __m512 inverse = _mm512_set1_ps(scale > 0 ? 1 / scale : 0);
    for (int64_t k = 0; k < K; k += LANES) {
        const __m512i q = _mm512_cvtps_epi32(to_float(x + k) * inverse);
        _mm_storeu_si128((__m128i*)(words + k), _mm512_cvtepi32_epi8(_mm512_add_epi32(q, _mm512_set1_epi32(OFFSET))));
    }
    return scale;
}

template <typename Out>
void linear_bfloat16(const uint16_t* x, const Columns& columns, Out* y, char*, int64_t M, int64_t K, bool has_gelu) {
#pragma omp parallel
    linear<BFloat16>((const int32_t*)x, nullptr, M, K / 2, columns, has_gelu, y);
}

template <typename Out>
void linear_int8(const uint16_t* x, const Columns& columns, Out* y, char* scratch, int64_t M, int64_t K, bool has_gelu) {
    float* const scales = (float*)scratch;
    uint8_t* const words = (uint8_t*)(scales + M);
#pragma omp parallel
    {
#pragma omp for
        for (int64_t m = 0; m < M; m++) scales[m] = quantize(x + m * K, K, words + m * K);
        linear<Int8>((const int32_t*)words, scales, M, K / 4, columns, has_gelu, y);
    }
}

#ifdef __AVX512FP16__
// One row `[K]` as halves below 1, each twice; returns its scale, a power of two. What is not finite stays so.
float halve(const uint16_t* x, int64_t K, uint32_t* words) {
    const uint32_t exponent = std::min(largest_of(x, K) >> 7, 252);  // as a float has it; the largest is < 2^(exponent - 126)
    const __m512 inverse = _mm512_set1_ps(float_of_bits((253 - exponent) << 23));
    for (int64_t k = 0; k < K; k += LANES) {
        const __m512i half = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(to_float(x + k) * inverse, _MM_FROUND_TO_NEAREST_INT));
        _mm512_storeu_si512(words + k, _mm512_or_si512(half, _mm512_slli_epi32(half, 16)));
    }
    return float_of_bits((exponent + 1) << 23);
}

template <typename Out>
void linear_float16(const uint16_t* x, const Columns& columns, Out* y, char* scratch, int64_t M, int64_t K, bool has_gelu) {
    float* const scales = (float*)scratch;
    uint32_t* const words = (uint32_t*)(scales + M);
#pragma omp parallel
    {
#pragma omp for
        for (int64_t m = 0; m < M; m++) scales[m] = halve(x + m * K, K, words + m * K);
        linear<Half<std::is_same_v<Out, float> ? 16 : 32>>((const int32_t*)words, scales, M, K, columns, has_gelu, y);
    }
}
#endif

}  // namespace

// x [M, K] bfloat16, K a multiple of LANES; y [M, N] in the type of the name's end; scratch of M floats and M * K bytes for
// weights in int8, M * K floats for halves; the rest as in `Columns`.
#define LINEAR(IN, OUT, T)                                                                                            \
    void linear_##IN##_to_##OUT(const uint16_t* x, const __m512i* panels, const float* bias, const float* scales,     \
                                const int32_t* totals, T* y, char* scratch, int64_t M, int64_t K, int64_t N,           \
                                int64_t has_gelu) {                                                                   \
        linear_##IN(x, Columns{panels, bias, scales, totals, N}, y, scratch, M, K, has_gelu);                         \
    }

extern "C" {
LINEAR(bfloat16, bfloat16, uint16_t)
LINEAR(bfloat16, float32, float)
LINEAR(int8, bfloat16, uint16_t)
LINEAR(int8, float32, float)
#ifdef __AVX512FP16__
LINEAR(float16, bfloat16, uint16_t)
LINEAR(float16, float32, float)
#endif
}
