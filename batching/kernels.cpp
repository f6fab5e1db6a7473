// The loops of a step for which torch has no fast form on CPUs: attention over the slots, and what is asked of the
// vocabulary's logits. Plain C functions over raw pointers, so that building needs neither torch's headers nor Python's;
// OpenMP's threads are those that torch made. Products and sums are in float32, whatever the cache holds.
//
// R rows of the step, N their new tokens, H heads, S positions of a slot (max_model_len), D head_dim

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace {

constexpr int LANES = 8;
constexpr int CACHE_LINE = 64;  // bytes
constexpr int TOGETHER = 4;     // new tokens of a row that read its keys and values together
constexpr int CHUNKS = 64;      // of a step's heads: enough to share out evenly, few enough that neighbours stay together
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

struct bfloat16 {
    uint16_t bits;
};

inline floats load(const float* source) {
    floats x;
    std::memcpy(&x, source, sizeof x);
    return x;
}

inline floats load(const bfloat16* source) {
    halves x;
    std::memcpy(&x, source, sizeof x);
    return (floats)(__builtin_convertvector(x, words) << 16);
}

inline void store(float* target, floats x) { std::memcpy(target, &x, sizeof x); }

// Round to nearest, ties to even. NaN stays NaN: those that arise here have no bit set in the half that is cut off.
inline void store(bfloat16* target, floats x) {
    const words bits = (words)x;
    const halves rounded = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, halves);
    std::memcpy(target, &rounded, sizeof rounded);
}

inline float to_float(float x) { return x; }

inline float to_float(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

// e^x for x <= 0, to about 1e-7 of itself: 2^n times Cephes' polynomial. NaN stays NaN.
inline floats exp_of_negative(floats x) {
    constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction
    x = x < -87.0f ? floats{} - 87.0f : x;
    const floats n = (x * 1.44269504f + round) - round;
    const floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    floats p = floats{} + 1.9875691500e-4f;
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + c;
    p = p * r * r + r + 1.0f;
    return p * (floats)((__builtin_convertvector(n, ints) + 127) << 23);
}

inline float sum(floats x) {
    x += __builtin_shuffle(x, ints{4, 5, 6, 7, 0, 1, 2, 3});
    x += __builtin_shuffle(x, ints{2, 3, 0, 1, 6, 7, 4, 5});
    return x[0] + x[1];
}

// The second where the first is NaN.
inline floats larger(floats x, floats y) { return x > y ? x : y; }

inline float largest_of(floats x) {
    float largest = x[0];
    for (int i = 1; i < LANES; i++) largest = std::max(largest, x[i]);
    return largest;
}

// Ask for one position of a head to come into the second-level cache.
template <int D, typename T>
inline void ask_for(const T* position) {
    for (int d = 0; d < D; d += CACHE_LINE / sizeof(T)) __builtin_prefetch(position + d, 0, 2);
}

// Q new tokens of one head, the first of them over `length` positions, each next one over one more. Strides are of
// the tokens' queries and outputs; `scores` has room for each one's, up to the next LANES.
// Tokens together read each key and value once; what a token sums, and in which order, is the same as alone.
template <int D, int Q, typename T>
void attend_some(const T* query, int64_t query_stride, const T* keys, const T* values, int64_t length, const T* next_keys,
                 const T* next_values, float* scores, T* output, int64_t output_stride) {
    constexpr int NUM_PIECES = D / LANES;
    constexpr int AT_ONCE = Q == 1 ? NUM_PIECES : std::min(2, NUM_PIECES);  // as many sums as there are registers for
    const int64_t end = length + Q - 1, room = (end + LANES - 1) / LANES * LANES;
    floats q[Q][NUM_PIECES];
#pragma GCC unroll 8
    for (int t = 0; t < Q; t++)
#pragma GCC unroll 8
        for (int i = 0; i < NUM_PIECES; i++) q[t][i] = load(query + t * query_stride + i * LANES);
    for (int64_t s = 0; s < end; s++) {
        // A head of a slot is a stream too short for the processor to foresee, so the next head's is asked for meanwhile.
        if (Q == 1) ask_for<D>(next_keys + s * D);
        floats products[Q]{};
#pragma GCC unroll 8
        for (int i = 0; i < NUM_PIECES; i++) {
            const floats key = load(keys + s * D + i * LANES);
#pragma GCC unroll 8
            for (int t = 0; t < Q; t++) products[t] += q[t][i] * key;
        }
#pragma GCC unroll 8
        for (int t = 0; t < Q; t++) scores[t * room + s] = sum(products[t]);
    }

    floats totals[Q]{};
#pragma GCC unroll 8
    for (int t = 0; t < Q; t++) {
        float* const own = scores + t * room;
        std::fill(own + length + t, own + room, -INFINITY);
        floats best = floats{} - INFINITY;
        for (int64_t s = 0; s < room; s += LANES) best = larger(load(own + s), best);
        const float largest = largest_of(best);
        for (int64_t s = 0; s < room; s += LANES) {
            const floats weights = exp_of_negative(load(own + s) - largest);
            totals[t] += weights;
            store(own + s, weights);
        }
        std::fill(own + length + t, own + end, 0);
    }

    for (int first = 0; first < NUM_PIECES; first += AT_ONCE) {
        floats sums[Q][AT_ONCE]{};
        for (int64_t s = 0; s < end; s++) {
            if (Q == 1) ask_for<D>(next_values + s * D);
#pragma GCC unroll 8
            for (int i = 0; i < AT_ONCE; i++) {
                const floats value = load(values + s * D + (first + i) * LANES);
#pragma GCC unroll 8
                for (int t = 0; t < Q; t++) sums[t][i] += scores[t * room + s] * value;
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < Q; t++)
#pragma GCC unroll 8
            for (int i = 0; i < AT_ONCE; i++)
                store(output + t * output_stride + (first + i) * LANES, sums[t][i] / sum(totals[t]));
    }
}

// qkv [N, 3, H, D], the queries already scaled; keys, values [num_slots, H, S, D]; output [N, H, D];
// rows [R, 4]: each one's first new token of the N, its slot, the position of that token in it, and how many they are.
// The new keys and values are written first. A row reads its own positions alone, and pays for no other row's.
template <int D, typename T>
void attend(const T* qkv, T* keys, T* values, const int64_t* rows, T* output, int64_t R, int64_t H, int64_t S) {
#pragma omp parallel
    {
        std::vector<float> scores(TOGETHER * (S + TOGETHER + LANES));
#pragma omp for schedule(dynamic, (R * H + CHUNKS - 1) / CHUNKS)
        for (int64_t i = 0; i < R * H; i++) {
            const int64_t r = i / H, h = i % H, next = std::min(i + 1, R * H - 1);
            const int64_t first = rows[4 * r], start = rows[4 * r + 2], count = rows[4 * r + 3];
            const auto place = [=](int64_t i) { return (rows[4 * (i / H) + 1] * H + i % H) * S * D; };
            T* const own_keys = keys + place(i);
            T* const own_values = values + place(i);
            const auto part = [=](int64_t t, int i) { return qkv + (((first + t) * 3 + i) * H + h) * D; };
            for (int64_t t = 0; t < count; t++) {
                std::copy_n(part(t, 1), D, own_keys + (start + t) * D);
                std::copy_n(part(t, 2), D, own_values + (start + t) * D);
            }
            for (int64_t t = 0; t < count;) {
                const bool is_one = count - t < TOGETHER;
                (is_one ? attend_some<D, 1, T> : attend_some<D, TOGETHER, T>)(
                    part(t, 0), 3 * H * D, own_keys, own_values, start + t + 1, keys + place(next), values + place(next),
                    scores.data(), output + ((first + t) * H + h) * D, H * D);
                t += is_one ? 1 : TOGETHER;
            }
        }
    }
}

// logits [M, V] -> the index of each row's largest, the first of equal ones; NaN is never the largest.
template <typename T>
void argmax(const T* logits, int64_t* indices, int64_t M, int64_t V) {
#pragma omp parallel for
    for (int64_t m = 0; m < M; m++) {
        const T* const row = logits + m * V;
        floats best = floats{} - INFINITY;
        ints where{};  // the LANES-wide piece of the row in which each lane's best stands
        const int32_t num_pieces = int32_t(V / LANES);
        for (int32_t i = 0; i < num_pieces; i++) {
            const floats x = load(row + int64_t(i) * LANES);
            const ints is_better = x > best;
            best = is_better ? x : best;
            where = is_better ? ints{} + i : where;
        }
        float largest = -INFINITY;
        int64_t index = 0;
        for (int lane = 0; lane < LANES; lane++) {
            const int64_t candidate = int64_t(where[lane]) * LANES + lane;
            if (best[lane] > largest || (best[lane] == largest && candidate < index))
                largest = best[lane], index = candidate;
        }
        for (int64_t v = int64_t(num_pieces) * LANES; v < V; v++)
            if (to_float(row[v]) > largest) largest = to_float(row[v]), index = v;
        indices[m] = index;
    }
}

// logits [M, V] -> the same, but -inf where a row's bit [M, ceil(V / 8)], the lowest of a byte first, is not set.
void restrict(const float* logits, const uint8_t* allowed, float* kept, int64_t M, int64_t V) {
    constexpr int BYTE = 8;
    static_assert(LANES == BYTE);
    const ints places = {1, 2, 4, 8, 16, 32, 64, 128};
    const floats nothing = floats{} - INFINITY;
#pragma omp parallel for
    for (int64_t m = 0; m < M; m++) {
        const float* const row = logits + m * V;
        const uint8_t* const bits = allowed + m * ((V + BYTE - 1) / BYTE);
        float* const result = kept + m * V;
        for (int64_t i = 0; i < V / BYTE; i++)
            store(result + i * BYTE, (places & int32_t(bits[i])) != 0 ? load(row + i * BYTE) : nothing);
        for (int64_t v = V / BYTE * BYTE; v < V; v++)
            result[v] = bits[v / BYTE] >> v % BYTE & 1 ? row[v] : -INFINITY;
    }
}

// logits [M, V] -> the logarithm of the sum of each row's exponentials. Sums of a piece are in float32, their sum is not.
void logsumexp(const float* logits, float* results, int64_t M, int64_t V) {
    constexpr int64_t PIECE = 128 * LANES;
#pragma omp parallel for
    for (int64_t m = 0; m < M; m++) {
        const float* const row = logits + m * V;
        const int64_t whole = V / LANES * LANES;
        floats best = floats{} - INFINITY;
        for (int64_t v = 0; v < whole; v += LANES) best = larger(load(row + v), best);
        float largest = largest_of(best);
        for (int64_t v = whole; v < V; v++) largest = std::max(largest, row[v]);
        double total = 0;
        for (int64_t start = 0; start < whole; start += PIECE) {
            floats sums{};
            for (int64_t v = start; v < std::min(start + PIECE, whole); v += LANES)
                sums += exp_of_negative(load(row + v) - largest);
            total += sum(sums);
        }
        for (int64_t v = whole; v < V; v++) total += std::exp(row[v] - largest);
        results[m] = float(largest + std::log(total));
    }
}

// logits [M, V] -> each row's K largest, the largest first and of equal ones the first: values and indices [M, K].
// Of the largest of each BLOCK of the row, the K-th is a bound that at least K numbers reach; the rest is not sorted. NaN
// is never among them; in a row with fewer than K numbers the first place fills up.
void topk(const float* logits, float* values, int64_t* indices, int64_t M, int64_t V, int64_t K) {
    constexpr int64_t BLOCK = 8 * LANES;
    const int64_t num_blocks = V / BLOCK;
#pragma omp parallel for
    for (int64_t m = 0; m < M; m++) {
        const float* const row = logits + m * V;
        std::vector<float> largest(num_blocks);
        for (int64_t b = 0; b < num_blocks; b++) {
            floats x = floats{} - INFINITY;
            for (int64_t i = 0; i < BLOCK; i += LANES) x = larger(load(row + b * BLOCK + i), x);
            largest[b] = largest_of(x);
        }
        float bound = -INFINITY;
        if (0 < K && K <= num_blocks) {
            std::vector<float> sorted = largest;
            std::nth_element(sorted.begin(), sorted.begin() + K - 1, sorted.end(), std::greater<float>());
            bound = sorted[K - 1];
        }
        std::vector<int32_t> found;
        for (int64_t b = 0; b <= num_blocks; b++)
            if (b == num_blocks || largest[b] >= bound)
                for (int64_t v = b * BLOCK; v < std::min((b + 1) * BLOCK, V); v++)
                    if (row[v] >= bound) found.push_back(int32_t(v));
        const auto middle = found.begin() + std::min(K, int64_t(found.size()));
        std::partial_sort(found.begin(), middle, found.end(), [row](int32_t a, int32_t b) {
            return row[a] > row[b] || (row[a] == row[b] && a < b);
        });
        found.resize(std::max(K, int64_t(found.size())));
        for (int64_t k = 0; k < K; k++) values[m * K + k] = row[found[k]], indices[m * K + k] = found[k];
    }
}

}  // namespace

// The head sizes that have code of their own; anything else is refused by `kernels.py`.
#define ATTEND(NAME, T)                                                                                               \
    void NAME(const T* qkv, T* keys, T* values, const int64_t* rows, T* output, int64_t R, int64_t H, int64_t S,      \
              int64_t D) {                                                                                            \
        switch (D) {                                                                                                  \
            case 8: return attend<8>(qkv, keys, values, rows, output, R, H, S);                                       \
            case 16: return attend<16>(qkv, keys, values, rows, output, R, H, S);                                     \
            case 32: return attend<32>(qkv, keys, values, rows, output, R, H, S);                                     \
            case 64: return attend<64>(qkv, keys, values, rows, output, R, H, S);                                     \
            case 128: return attend<128>(qkv, keys, values, rows, output, R, H, S);                                   \
        }                                                                                                             \
    }

extern "C" {
ATTEND(attend_float32, float)
ATTEND(attend_bfloat16, bfloat16)
void argmax_float32(const float* logits, int64_t* indices, int64_t M, int64_t V) { argmax(logits, indices, M, V); }
void argmax_bfloat16(const bfloat16* logits, int64_t* indices, int64_t M, int64_t V) { argmax(logits, indices, M, V); }
void restrict_float32(const float* logits, const uint8_t* allowed, float* kept, int64_t M, int64_t V) {
    restrict(logits, allowed, kept, M, V);
}
void logsumexp_float32(const float* logits, float* results, int64_t M, int64_t V) { logsumexp(logits, results, M, V); }
void topk_float32(const float* logits, float* values, int64_t* indices, int64_t M, int64_t V, int64_t K) {
    topk(logits, values, indices, M, V, K);
}
}
