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

template <int L>
struct Lanes {
    typedef float floats __attribute__((vector_size(4 * L)));
    typedef int32_t ints __attribute__((vector_size(4 * L)));
    typedef uint32_t words __attribute__((vector_size(4 * L)));
};
typedef Lanes<LANES>::floats floats;
typedef Lanes<LANES>::ints ints;
typedef Lanes<LANES>::words words;
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

// Twice L numbers, in an order that `store` undoes: bfloat16's even ones and odd ones, which come apart in two operations
// where their own order takes four.
template <int L>
struct Pair {
    typedef typename Lanes<L>::floats floats;
    typedef typename Lanes<L>::words words;
    floats first, second;

    static Pair load(const float* source) {
        Pair x;
        std::memcpy(&x.first, source, sizeof x.first);
        std::memcpy(&x.second, source + L, sizeof x.second);
        return x;
    }

    static Pair load(const bfloat16* source) {
        words x;
        std::memcpy(&x, source, sizeof x);
        return {(floats)(x << 16), (floats)(x & 0xffff0000)};
    }

    void store(float* target) const {
        std::memcpy(target, &first, sizeof first);
        std::memcpy(target + L, &second, sizeof second);
    }

    void store(bfloat16* target) const {
        const words x = rounded(first) >> 16 | (rounded(second) & 0xffff0000);
        std::memcpy(target, &x, sizeof x);
    }

    // To nearest, ties to even, in the upper half. NaN stays NaN: those that arise here have no bit set in the lower one.
    static words rounded(floats x) {
        const words bits = (words)x;
        return bits + 0x7fff + (bits >> 16 & 1);
    }
};

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

// Lane i is added to lane i + L / 2, then what that gave to what lies L / 4 further, and so on.
template <int L>
inline float sum(typename Lanes<L>::floats x) {
    for (int width = L / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; lane++) x[lane] += x[lane + width];
    return x[0];
}

// The sums of L vectors at once, each with the bits that `sum` gives. A round begins with WIDTH vectors, of which number
// n holds WIDTH partial sums of each of n, n + WIDTH, n + 2 * WIDTH …, and ends with half as many of half as many each.
template <int L, int WIDTH = L>
inline typename Lanes<L>::floats sums_of(typename Lanes<L>::floats* vectors) {
    if constexpr (WIDTH == 1) {
        return vectors[0];
    } else {
        constexpr int HALF = WIDTH / 2;
        typename Lanes<L>::ints near{}, far{};
#pragma GCC unroll 16
        for (int lane = 0; lane < L; lane++) {
            const int group = lane / HALF;  // even ones from the one vector, odd ones from the other
            near[lane] = group / 2 * WIDTH + lane % HALF + group % 2 * L;
            far[lane] = near[lane] + HALF;
        }
#pragma GCC unroll 8
        for (int i = 0; i < HALF; i++)
            vectors[i] = __builtin_shuffle(vectors[i], vectors[i + HALF], near) +
                         __builtin_shuffle(vectors[i], vectors[i + HALF], far);
        return sums_of<L, HALF>(vectors);
    }
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
//
// A head of a slot is a stream too short for the processor to foresee. So while a token alone reads its keys it asks for
// its values, and while it reads those, for the next head's keys.
template <int D, int Q, typename T>
void attend_some(const T* query, int64_t query_stride, const T* keys, const T* values, int64_t length, const T* next_keys,
                 float* scores, T* output, int64_t output_stride) {
    constexpr int L = std::min(LANES, D / 2), NUM_PAIRS = D / L / 2;
    typedef typename Lanes<L>::floats Sums;
    constexpr int AT_ONCE = Q == 1 ? NUM_PAIRS : 1;  // as many sums as there are registers for
    constexpr int BLOCK = L / Q;  // positions, so many that their products with all queries fill L vectors
    const int64_t end = length + Q - 1, room = (end + LANES - 1) / LANES * LANES;
    Pair<L> q[Q][NUM_PAIRS];
#pragma GCC unroll 8
    for (int t = 0; t < Q; t++)
#pragma GCC unroll 8
        for (int i = 0; i < NUM_PAIRS; i++) q[t][i] = Pair<L>::load(query + t * query_stride + i * 2 * L);
    const auto multiply = [&](int64_t s, Sums* products, int stride) {
        if (Q == 1) ask_for<D>(values + s * D);
#pragma GCC unroll 8
        for (int i = 0; i < NUM_PAIRS; i++) {
            const Pair<L> key = Pair<L>::load(keys + s * D + i * 2 * L);
#pragma GCC unroll 8
            for (int t = 0; t < Q; t++) {
                products[t * stride] += q[t][i].first * key.first;
                products[t * stride] += q[t][i].second * key.second;
            }
        }
    };
    int64_t s = 0;
    for (; s + BLOCK <= end; s += BLOCK) {
        Sums products[L]{};
#pragma GCC unroll 16
        for (int b = 0; b < BLOCK; b++) multiply(s + b, products + b, BLOCK);
        const Sums sums = sums_of<L>(products);
#pragma GCC unroll 8
        for (int t = 0; t < Q; t++) std::memcpy(scores + t * room + s, (const float*)&sums + t * BLOCK, BLOCK * sizeof(float));
    }
    for (; s < end; s++) {
        Sums products[Q]{};
        multiply(s, products, 1);
#pragma GCC unroll 8
        for (int t = 0; t < Q; t++) scores[t * room + s] = sum<L>(products[t]);
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

    for (int first = 0; first < NUM_PAIRS; first += AT_ONCE) {
        Pair<L> sums[Q][AT_ONCE]{};
        for (int64_t s = 0; s < end; s++) {
            if (Q == 1) ask_for<D>(next_keys + s * D);
#pragma GCC unroll 8
            for (int i = 0; i < AT_ONCE; i++) {
                const Pair<L> value = Pair<L>::load(values + s * D + (first + i) * 2 * L);
#pragma GCC unroll 8
                for (int t = 0; t < Q; t++) {
                    sums[t][i].first += scores[t * room + s] * value.first;
                    sums[t][i].second += scores[t * room + s] * value.second;
                }
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < Q; t++) {
            const float total = sum<LANES>(totals[t]);
#pragma GCC unroll 8
            for (int i = 0; i < AT_ONCE; i++) {
                const Pair<L> mean = {sums[t][i].first / total, sums[t][i].second / total};
                mean.store(output + t * output_stride + (first + i) * 2 * L);
            }
        }
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
                    part(t, 0), 3 * H * D, own_keys, own_values, start + t + 1, keys + place(next),
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
            total += sum<LANES>(sums);
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
