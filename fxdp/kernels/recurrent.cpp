// All steps of a recurrent layer in one call, forward or backward: the loops of
// `fxdp.kernels.recurrent_loops`, compiled for a NUMBER, float or double, and compared with them by
// `fxdp.kernels.recurrent_native`.
//
// A step's product of states and weights is made in registers, some rows by some vectors at a time,
// and forward the gates are opened while their numbers are still there. Rows know nothing of each
// other, so some of them go through all steps before the next ones do: their states stay in the
// cache, and no thread waits for another. What a row becomes does not depend on those beside it,
// not even by rounding. NaN and infinities come out where they do in the loops.
//
// Letters: T steps, N rows, H width, as in Python; L numbers in a vector, V vectors in a panel.
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
enum { BYTES = 64, ROWS = 6 };  // 24 of 32 registers for sums
#elif defined(__AVX__)
enum { BYTES = 32, ROWS = 3 };  // 12 of 16
#elif defined(__aarch64__)
enum { BYTES = 16, ROWS = 6 };
#else
enum { BYTES = 16, ROWS = 3 };
#endif
enum { AT_ONCE = 96, DEEP = 512 };  // rows, and lines of a panel, that stay in the cache
enum { PADDING = 32 };              // columns that packed weights may have more; as in Python

#define INLINE static inline __attribute__((always_inline))

template <class T> struct Kind;
template <> struct Kind<float> {
    typedef int32_t Whole;
    static constexpr int L = BYTES / 4, TERMS = 7;
    static constexpr Whole FRACTION = 23, BIAS = 127;
    static constexpr float LEAST = -87, MOST = 89;
    static constexpr float LN2 = 0.693359375f, LN2_REST = -2.12194440e-4f;
};
template <> struct Kind<double> {
    typedef int64_t Whole;
    static constexpr int L = BYTES / 8, TERMS = 13;
    static constexpr Whole FRACTION = 52, BIAS = 1023;
    static constexpr double LEAST = -708, MOST = 710;
    static constexpr double LN2 = 6.93147180369123816490e-01, LN2_REST = 1.90821492927058770002e-10;
};
template <class T> struct Of {
    typedef T Vec __attribute__((vector_size(BYTES)));
    typedef typename Kind<T>::Whole Bits __attribute__((vector_size(BYTES)));
};
template <class T> using Vec = typename Of<T>::Vec;
template <class T> using Bits = typename Of<T>::Bits;

template <class T> INLINE Vec<T> splat(T x) { return x - Vec<T>{}; }

// The first numbers at p, at most a vector of them; 0 behind.
template <class T> INLINE Vec<T> load(const T *p, int64_t count) {
    Vec<T> x = {};
    if (count >= Kind<T>::L) memcpy(&x, p, BYTES);
    else for (int64_t i = 0; i < count; i++) x[i] = p[i];
    return x;
}

template <class T> INLINE void store(T *p, Vec<T> x, int64_t count) {
    if (count >= Kind<T>::L) memcpy(p, &x, BYTES);
    else for (int64_t i = 0; i < count; i++) p[i] = x[i];
}

// Functions. -----------------------------------------------------------------------------------
// e^x = 2^n e^r with |r| at most half of log 2, and e^r - 1 by Taylor's series, whose first term
// left out is below half a unit in the last place. No comparison with NaN holds, so that limits
// let it pass.

// Returns e^r - 1, and 2^n.
template <class T> INLINE Vec<T> expm1_of_rest(Vec<T> x, Vec<T> *power) {
    typedef Kind<T> K;
    const T shift = (T)((typename K::Whole)3 << (K::FRACTION - 1));  // its last bit stands for 1
    const Vec<T> moved = x * (T)1.4426950408889634 + shift, n = moved - shift;
    const Vec<T> r = (x - n * K::LN2) - n * K::LN2_REST;
    *power = (Vec<T>)(((Bits<T>)moved + K::BIAS) << K::FRACTION);
    T factorial = 1;
    for (int k = 2; k <= K::TERMS; k++) factorial *= k;
    Vec<T> sum = {};
#pragma GCC unroll 16
    for (int k = K::TERMS; k >= 2; k--) {
        sum = sum * r + 1 / factorial;
        factorial /= k;
    }
    return r + r * r * sum;
}

template <class T> INLINE Vec<T> sigmoid(Vec<T> x) {
    typedef Kind<T> K;
    Vec<T> y = -x, power;
    y = y > K::MOST ? splat<T>(K::MOST) : y;  // where the power of 2 is infinite
    y = y < K::LEAST ? splat<T>(K::LEAST) : y;
    const Vec<T> rest = expm1_of_rest<T>(y, &power);
    return 1 / (1 + (power + power * rest));
}

template <class T> INLINE Vec<T> tanh(Vec<T> x) {
    const Bits<T> sign = (Bits<T>)splat<T>(-(T)0.0);
    Vec<T> size = (Vec<T>)((Bits<T>)x & ~sign), power;
    size = size > 20 ? splat<T>(20) : size;  // where it is 1
    const Vec<T> rest = expm1_of_rest<T>(-2 * size, &power);
    const Vec<T> less = power * rest + (power - 1);  // e^(-2 size) - 1, of full precision near 0
    return (Vec<T>)(((Bits<T>)(less / (2 + less)) & ~sign) | ((Bits<T>)x & sign));
}

// Products. ------------------------------------------------------------------------------------

// Some columns of a weight: V vectors side by side, or one of each gate, whose columns begin
// `width` apart.
template <class T, int V_, bool OF_GATES> struct Panel {
    static constexpr int V = V_;
    int64_t first, width;
    int64_t column(int v) const { return first + v * (OF_GATES ? width : (int64_t)Kind<T>::L); }
    int64_t count(int v) const { return width - first - (OF_GATES ? 0 : v * Kind<T>::L); }
};

// Calls `each` for all panels: of all gates, where there are several; else of four vectors or two.
template <class T, int GATES, class Each> INLINE void panels(int64_t width, Each each) {
    const int64_t L = Kind<T>::L;
    if constexpr (GATES > 1) {
        for (int64_t p = 0; p < width; p += L) each(Panel<T, GATES, true>{p, width});
    } else {
        for (int64_t p = 0; p < width; p += 4 * L)
            if (width - p > 2 * L) each(Panel<T, 4, false>{p, width});
            else each(Panel<T, 2, false>{p, width});
    }
}

// Writes a weight panel by panel, and line by line, in the order in which `multiply` reads it.
// Line k of column c is w[k * down + c * across], and one of the two is 1. `deep`: lines of a panel
// before those of the next one.
template <class T, int GATES> static void pack(
    T *to, const T *w, int64_t depth, int64_t width, int64_t down, int64_t across, int64_t deep
) {
    constexpr int L = Kind<T>::L;
    static_assert(PADDING >= 2 * L, "a panel may be wider than what is left");
    for (int64_t k = 0; k < depth; k += deep) {
        const int64_t end = depth - k < deep ? depth : k + deep;
        panels<T, GATES>(width, [&](auto panel) {
            constexpr int V = panel.V;
            if (across == 1) {
                for (int64_t line = k; line < end; line++)
                    for (int v = 0; v < V; v++, to += L)
                        store(to, load(w + line * down + panel.column(v), panel.count(v)), L);
                return;
            }
            for (int64_t first = k; first < end; first += L) {  // turned in squares
                const int64_t lines = end - first < L ? end - first : (int64_t)L;
                for (int v = 0; v < V; v++)
                    for (int l = 0; l < L; l++) {
                        const T *column = w + (panel.column(v) + l) * across + first;
                        const Vec<T> x = load(column, l < panel.count(v) ? lines : 0);
                        for (int64_t i = 0; i < lines; i++) to[(i * V + v) * L + l] = x[i];
                    }
                to += lines * V * L;
            }
        });
    }
}

// R rows by V vectors: `depth` products of each added to what `start` gives.
template <int R, class T, class Panel, class Start, class Finish> INLINE void tile(
    const T *a, int64_t stride, const T *packed, int64_t depth, int64_t n, Panel panel, Start start,
    Finish finish
) {
    constexpr int V = Panel::V;
    Vec<T> sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = start(n + r, panel, v);
    a += n * stride;
    for (int64_t k = 0; k < depth; k++, packed += V * Kind<T>::L) {
        Vec<T> w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) memcpy(&w[v], packed + v * Kind<T>::L, BYTES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Vec<T> x = splat<T>(a[r * stride + k]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] += x * w[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) finish(n + r, panel, sums[r]);
}

// Rows [from, to) of a [N, depth] times a packed weight; `finish` gets the sums, panel by panel.
template <int GATES, class T, class Start, class Finish> INLINE void multiply(
    const T *a, int64_t depth, const T *packed, int64_t width, int64_t deep, int64_t from,
    int64_t to, Start start, Finish finish
) {
    for (int64_t k = 0; k < depth; k += deep) {
        const int64_t lines = depth - k < deep ? depth - k : deep;
        panels<T, GATES>(width, [&](auto panel) {
            int64_t n = from;
            for (; n + ROWS <= to; n += ROWS)
                tile<ROWS>(a + k, depth, packed, lines, n, panel, start, finish);
            for (; n + 2 <= to; n += 2)
                tile<2>(a + k, depth, packed, lines, n, panel, start, finish);
            for (; n < to; n++) tile<1>(a + k, depth, packed, lines, n, panel, start, finish);
            packed += lines * panel.V * Kind<T>::L;
        });
    }
}

// Adds to rows [from, to) of out [N, H] those of g [N, depth] times a packed weight.
template <class T> static void add_product(
    T *out, const T *g, int64_t depth, const T *packed, int64_t width, int64_t from, int64_t to
) {
    multiply<1>(
        g, depth, packed, width, DEEP, from, to,
        [=](int64_t n, auto panel, int v) {
            return load(out + n * width + panel.column(v), panel.count(v));
        },
        [=](int64_t n, auto panel, const Vec<T> *sums) {
#pragma GCC unroll 4
            for (int v = 0; v < panel.V; v++)
                store(out + n * width + panel.column(v), sums[v], panel.count(v));
        });
}

// Calls `body` with the first and the last of some rows, until all were.
template <class Body> static void over_rows(int64_t n, int threads, Body body) {
    const int64_t share = (n + threads - 1) / threads;
    const int64_t most = share < AT_ONCE ? share : (int64_t)AT_ONCE;
    const int64_t parts = most ? (n + most - 1) / most : 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < parts; p++) body(p * most, p == parts - 1 ? n : (p + 1) * most);
}

// Layers. --------------------------------------------------------------------------------------
// `all`: operands, then results, in the loops' order, then room for the weight, packed. What a
// backward loop adds up, g_h and g_c, holds what it begins with.

struct Sizes { int64_t steps, rows, width; int threads, relu; };

template <class T> static void lstm(T *const *all, Sizes s) {
    const int64_t steps = s.steps, rows = s.rows, width = s.width, size = rows * width;
    const T *x = all[0], *first = all[1], *first_cell = all[2], *w = all[3];
    T *states = all[4], *gates = all[5], *cells = all[6], *room = all[7];
    pack<T, 4>(room, w, width, width, 1, width, width);
    over_rows(rows, s.threads, [=](int64_t from, int64_t to) {
        for (int64_t t = 0; t < steps; t++) {
            const T *given = x + t * 4 * size;
            const T *before = t ? cells + 2 * (t - 1) * size : first_cell;
            T *opened = gates + t * 4 * size, *cell = cells + 2 * t * size;
            T *state = states + t * size;
            multiply<4>(
                t ? state - size : first, width, room, width, width, from, to,
                [=](int64_t n, auto panel, int v) {
                    return load(given + n * 4 * width + panel.column(v), panel.count(v));
                },
                [=](int64_t n, auto panel, const Vec<T> *sums) {
                    const int64_t at = n * width + panel.first, many = panel.count(0);
                    const Vec<T> i = sigmoid<T>(sums[0]), f = sigmoid<T>(sums[1]);
                    const Vec<T> g = tanh<T>(sums[2]), o = sigmoid<T>(sums[3]);
                    const Vec<T> c = f * load(before + at, many) + i * g, squashed = tanh<T>(c);
                    const Vec<T> found[] = {i, f, g, o};
#pragma GCC unroll 4
                    for (int v = 0; v < 4; v++)
                        store(opened + n * 4 * width + panel.column(v), found[v], many);
                    store(cell + at, c, many);
                    store(cell + size + at, squashed, many);
                    store(state + at, o * squashed, many);
                });
        }
    });
}

template <class T> static void lstm_backward(T *const *all, Sizes s) {
    const int64_t steps = s.steps, rows = s.rows, width = s.width, size = rows * width;
    const T *g_states = all[0], *gates = all[1], *cells = all[2], *first_cell = all[3], *w = all[4];
    T *closed = all[5], *g_h = all[6], *g_c = all[7], *room = all[8];
    pack<T, 1>(room, w, 4 * width, width, width, 1, DEEP);
    over_rows(rows, s.threads, [=](int64_t from, int64_t to) {
        for (int64_t t = steps - 1; t >= 0; t--) {
            const T *before = t ? cells + 2 * (t - 1) * size : first_cell;
            T *row = closed + t * 4 * size;
            for (int64_t n = from; n < to; n++)
                for (int64_t p = 0; p < width; p += Kind<T>::L) {
                    const int64_t at = n * width + p, many = width - p, gate = n * 4 * width + p;
                    const T *open = gates + t * 4 * size + gate;
                    const Vec<T> i = load(open, many), f = load(open + width, many);
                    const Vec<T> g = load(open + 2 * width, many), o = load(open + 3 * width, many);
                    const Vec<T> squashed = load(cells + (2 * t + 1) * size + at, many);
                    const Vec<T> to_h = load(g_h + at, many) + load(g_states + t * size + at, many);
                    const Vec<T> slope = 1 - squashed * squashed;
                    const Vec<T> to_c = load(g_c + at, many) + to_h * o * slope;
                    store(row + gate, to_c * g * (1 - i) * i, many);
                    store(row + gate + width, to_c * load(before + at, many) * (1 - f) * f, many);
                    store(row + gate + 2 * width, to_c * i * (1 - g * g), many);
                    store(row + gate + 3 * width, to_h * squashed * (1 - o) * o, many);
                    store(g_c + at, to_c * f, many);
                    store(g_h + at, Vec<T>{}, many);
                }
            add_product<T>(g_h, row, 4 * width, room, width, from, to);
        }
    });
}

template <class T> static void gru(T *const *all, Sizes s) {
    const int64_t steps = s.steps, rows = s.rows, width = s.width, size = rows * width;
    const T *x = all[0], *first = all[1], *w = all[2], *bias = all[3];
    T *states = all[4], *kept = all[5], *room = all[6];
    pack<T, 3>(room, w, width, width, 1, width, width);
    over_rows(rows, s.threads, [=](int64_t from, int64_t to) {
        for (int64_t t = 0; t < steps; t++) {
            const T *given = x + t * 3 * size, *before = t ? states + (t - 1) * size : first;
            T *keep = kept + t * 4 * size, *state = states + t * size;
            multiply<3>(
                before, width, room, width, width, from, to,
                [=](int64_t, auto panel, int v) {
                    return load(bias + panel.column(v), panel.count(v));
                },
                [=](int64_t n, auto panel, const Vec<T> *sums) {
                    const int64_t at = n * width + panel.first, many = panel.count(0);
                    const T *row = given + n * 3 * width;
                    const Vec<T> r = sigmoid<T>(sums[0] + load(row + panel.column(0), many));
                    const Vec<T> z = sigmoid<T>(sums[1] + load(row + panel.column(1), many));
                    const Vec<T> g = tanh<T>(load(row + panel.column(2), many) + r * sums[2]);
                    const Vec<T> h = load(before + at, many), apart = h - g;
                    // As torch.lerp: exact at both ends.
                    const Vec<T> mixed = z < (T)0.5 ? g + z * apart : h - apart * (1 - z);
                    const Vec<T> found[] = {r, z, g, sums[2]};
#pragma GCC unroll 4
                    for (int v = 0; v < 4; v++) store(keep + v * size + at, found[v], many);
                    store(state + at, mixed, many);
                });
        }
    });
}

template <class T> static void gru_backward(T *const *all, Sizes s) {
    const int64_t steps = s.steps, rows = s.rows, width = s.width, size = rows * width;
    const T *g_states = all[0], *states = all[1], *kept = all[2], *first = all[3], *w = all[4];
    T *given = all[5], *own = all[6], *g_h = all[7], *room = all[8];
    pack<T, 1>(room, w, 3 * width, width, width, 1, DEEP);
    over_rows(rows, s.threads, [=](int64_t from, int64_t to) {
        for (int64_t t = steps - 1; t >= 0; t--) {
            const T *before = t ? states + (t - 1) * size : first, *keep = kept + t * 4 * size;
            for (int64_t n = from; n < to; n++)
                for (int64_t p = 0; p < width; p += Kind<T>::L) {
                    const int64_t at = n * width + p, many = width - p;
                    const Vec<T> r = load(keep + at, many), z = load(keep + size + at, many);
                    const Vec<T> g = load(keep + 2 * size + at, many);
                    const Vec<T> of_state = load(keep + 3 * size + at, many);
                    const Vec<T> to_h = load(g_h + at, many) + load(g_states + t * size + at, many);
                    const Vec<T> to_g = to_h * ((1 - z) * (1 - g * g));
                    const Vec<T> to_r = to_g * (of_state * r * (1 - r));
                    const Vec<T> to_z = to_h * ((load(before + at, many) - g) * z * (1 - z));
                    T *of_x = given + 3 * (t * size + n * width) + p;
                    T *of_h = own + 3 * (t * size + n * width) + p;
                    store(of_x, to_r, many), store(of_h, to_r, many);
                    store(of_x + width, to_z, many), store(of_h + width, to_z, many);
                    store(of_x + 2 * width, to_g, many), store(of_h + 2 * width, to_g * r, many);
                    store(g_h + at, to_h * z, many);
                }
            add_product<T>(g_h, own + t * 3 * size, 3 * width, room, width, from, to);
        }
    });
}

template <class T> static void rnn(T *const *all, Sizes s) {
    const int64_t steps = s.steps, rows = s.rows, width = s.width, size = rows * width;
    const T *x = all[0], *first = all[1], *w = all[2];
    T *states = all[3], *room = all[4];
    const bool relu = s.relu;
    pack<T, 1>(room, w, width, width, 1, width, width);
    over_rows(rows, s.threads, [=](int64_t from, int64_t to) {
        for (int64_t t = 0; t < steps; t++) {
            const T *given = x + t * size;
            T *state = states + t * size;
            multiply<1>(
                t ? state - size : first, width, room, width, width, from, to,
                [=](int64_t n, auto panel, int v) {
                    return load(given + n * width + panel.column(v), panel.count(v));
                },
                [=](int64_t n, auto panel, const Vec<T> *sums) {
#pragma GCC unroll 4
                    for (int v = 0; v < panel.V; v++) {
                        const Vec<T> x = sums[v], h = relu ? (x < 0 ? Vec<T>{} : x) : tanh<T>(x);
                        store(state + n * width + panel.column(v), h, panel.count(v));
                    }
                });
        }
    });
}

template <class T> static void rnn_backward(T *const *all, Sizes s) {
    const int64_t steps = s.steps, rows = s.rows, width = s.width, size = rows * width;
    const T *g_states = all[0], *states = all[1], *w = all[2];
    T *g = all[3], *g_h = all[4], *room = all[5];
    const bool relu = s.relu;
    pack<T, 1>(room, w, width, width, width, 1, DEEP);
    over_rows(rows, s.threads, [=](int64_t from, int64_t to) {
        for (int64_t t = steps - 1; t >= 0; t--) {
            for (int64_t n = from; n < to; n++)
                for (int64_t p = 0; p < width; p += Kind<T>::L) {
                    const int64_t at = n * width + p, many = width - p;
                    const Vec<T> h = load(states + t * size + at, many);
                    const Vec<T> slope = relu ? (h > 0 ? splat<T>(1) : Vec<T>{}) : 1 - h * h;
                    const Vec<T> to_h = load(g_h + at, many) + load(g_states + t * size + at, many);
                    store(g + t * size + at, to_h * slope, many);
                    store(g_h + at, Vec<T>{}, many);
                }
            add_product<T>(g_h, g + t * size, width, room, width, from, to);
        }
    });
}

#define DEFINE(NAME)                                                                           \
    extern "C" void fxdp_##NAME(                                                               \
        NUMBER *const *all, int64_t steps, int64_t rows, int64_t width, int threads, int relu  \
    ) {                                                                                        \
        NAME<NUMBER>(all, {steps, rows, width, threads, relu});                                \
    }
DEFINE(lstm)
DEFINE(lstm_backward)
DEFINE(gru)
DEFINE(gru_backward)
DEFINE(rnn)
DEFINE(rnn_backward)
