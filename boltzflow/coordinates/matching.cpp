// Permutations and rotations that bring configurations close to others, compiled on the user's machine by
// matching_kernel.py; matching.py is the reference.
//
// Of a pair (x, y) assignments within groups alternate with rotations about the origin. An assignment is the shortest
// augmenting path algorithm (Jonker, Volgenant 1987) with its inner loops over columns; a rotation comes from the largest
// root of a quartic in closed form (Markley 1993). Columns are padded to a multiple of 16 by members that cost too much.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

constexpr int W = 16;
constexpr int MAX_NEWTON = 50;

struct Plan {
    int64_t n, dim, n_groups, rotate, reflect, rounds;
    const int32_t *members, *ends;  // groups one after the other, and where each of them ends
};

inline int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

// Work space of one thread.
template <typename R>
struct Space {
    std::vector<R> turned, cost, v, d, open, length;
    std::vector<int32_t> row_of, column_of, before, free, scanned, order;

    Space(int64_t n, int64_t dim) : turned(n * dim), cost(n * padded(n)), v(padded(n)), d(padded(n)), open(padded(n)),
        length(n), row_of(padded(n)), column_of(n), before(padded(n)), free(n), scanned(n), order(n) {}
};

// The bits of a distance with its column in place of the last ones, so that one minimum tells both: d loses 2 W ulp at
// most, and of negative ones, that rounding leaves, the order is of no account.
template <typename R>
struct Bits;
template <>
struct Bits<float> { using type = int32_t; };
template <>
struct Bits<double> { using type = int64_t; };

template <typename R>
inline typename Bits<R>::type key(R d, int column, int last) {
    using I = typename Bits<R>::type;
    return (std::bit_cast<I>(d) & ~I(last)) | I(column);
}

// column_of[row] of least total cost (n, padded), of which padding costs far. P is padded(n), or 0 for any.
template <typename R, int P>
void assign(Space<R> &s, int n) {
    using I = typename Bits<R>::type;
    constexpr I most = std::numeric_limits<I>::max();
    constexpr R far = std::numeric_limits<R>::max();
    const int width = P ? P : int(padded(n)), last = int(std::bit_ceil(unsigned(width))) - 1;
    R *v = s.v.data(), *d = s.d.data(), *open = s.open.data(), *length = s.length.data();
    int32_t *row_of = s.row_of.data(), *column_of = s.column_of.data(), *before = s.before.data();
    int32_t *free_rows = s.free.data(), *scanned = s.scanned.data();
    const R *cost = s.cost.data();
    #pragma omp simd
    for (int j = 0; j < width; ++j) v[j] = cost[j], row_of[j] = -1;
    for (int i = 1; i < n; ++i) {
        #pragma omp simd
        for (int j = 0; j < width; ++j) v[j] = cost[i * width + j] < v[j] ? cost[i * width + j] : v[j];
    }
    for (int j = n; j < width; ++j) v[j] = 0;
    // a row takes its cheapest column if that is free
    int n_free = 0;
    for (int i = 0; i < n; ++i) {
        I least = most;
        #pragma omp simd reduction(min : least)
        for (int j = 0; j < width; ++j) {
            const I k = key(cost[i * width + j] - v[j], j, last);
            least = k < least ? k : least;
        }
        const int at = int(least & last);
        if (row_of[at] < 0) row_of[at] = i, column_of[i] = at;
        else free_rows[n_free++] = i;
    }
    for (int f = 0; f < n_free; ++f) {
        const int free = free_rows[f];
        I least = most;
        #pragma omp simd reduction(min : least)
        for (int j = 0; j < width; ++j) {
            open[j] = v[j];
            d[j] = cost[free * width + j] - v[j];
            before[j] = free;
            const I k = key(d[j], j, last);
            least = k < least ? k : least;
        }
        int n_scanned = 0, end;
        R low;
        for (;;) {
            const int at = int(least & last), row = row_of[at];
            low = d[at];
            if (row < 0) {
                end = at;
                break;
            }
            length[n_scanned] = low, scanned[n_scanned++] = at;
            const R *c = cost + row * width;
            const R shift = low - (c[at] - v[at]);
            // no path comes back to a column that is scanned
            open[at] = -far, d[at] = far;
            least = most;
            #pragma omp simd reduction(min : least)
            for (int j = 0; j < width; ++j) {
                const R longer = c[j] - open[j] + shift;
                const bool better = longer < d[j];
                d[j] = better ? longer : d[j];
                before[j] = better ? row : before[j];
                const I k = key(d[j], j, last);
                least = k < least ? k : least;
            }
        }
        for (int k = 0; k < n_scanned; ++k) v[scanned[k]] += length[k] - low;
        for (int j = end;;) {
            const int row = before[j], next = column_of[row];
            row_of[j] = row, column_of[row] = j;
            if (row == free) break;
            j = next;
        }
    }
}

// The largest sum of products of y with turned x, from h = xᵀ y; and the rotation r, x r close to y, where it is unique.
inline double overlap(const double *h, const Plan &plan, double *r) {
    if (plan.dim == 2) {
        const double c = h[0] + h[3], s = h[1] - h[2], mirrored_c = h[0] - h[3], mirrored_s = h[1] + h[2];
        const double proper = std::hypot(c, s), improper = plan.reflect ? std::hypot(mirrored_c, mirrored_s) : 0;
        const double most = std::max(proper, improper);
        if (r && most > 0) {
            if (proper >= improper) r[0] = c / most, r[1] = s / most, r[2] = -s / most, r[3] = c / most;
            else r[0] = mirrored_c / most, r[1] = mirrored_s / most, r[2] = mirrored_s / most, r[3] = -mirrored_c / most;
        }
        return most;
    }
    double cofactor[9], p = 0, q = 0;
    for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b) {
            const int a1 = (a + 1) % 3, a2 = (a + 2) % 3, b1 = (b + 1) % 3, b2 = (b + 2) % 3;
            cofactor[3 * a + b] = h[3 * a1 + b1] * h[3 * a2 + b2] - h[3 * a1 + b2] * h[3 * a2 + b1];
            p += h[3 * a + b] * h[3 * a + b];
            q += cofactor[3 * a + b] * cofactor[3 * a + b];
        }
    double det = h[0] * cofactor[0] + h[1] * cofactor[1] + h[2] * cofactor[2];
    // of -x the best proper rotation is the best improper one of x
    const double hand = plan.reflect && det < 0 ? -1 : 1;
    det *= hand;
    // sums of the singular values with an even number of signs are the roots of λ⁴ - 2pλ² - 8 det λ + p² - 4q
    double root = std::sqrt(3 * p);
    for (int k = 0; k < MAX_NEWTON; ++k) {
        const double square = root * root - p;
        const double value = square * square - 8 * det * root - 4 * q, slope = 4 * root * square - 8 * det;
        if (!(slope > 0)) break;
        const double step = value / slope;
        root -= step;
        if (!(std::abs(step) > 1e-12 * root)) break;
    }
    if (!r) return root;
    const double kappa = 0.5 * (root * root - p), zeta = kappa * root - det;
    if (!(zeta > 1e-9 * root * root * root)) return root;
    double hht[9];
    for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b) hht[3 * a + b] = h[3 * a] * h[3 * b] + h[3 * a + 1] * h[3 * b + 1] + h[3 * a + 2] * h[3 * b + 2];
    for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b) {
            const double cube = hht[3 * a] * h[b] + hht[3 * a + 1] * h[3 + b] + hht[3 * a + 2] * h[6 + b];
            r[3 * a + b] = ((kappa + p) * h[3 * a + b] - cube + hand * root * cofactor[3 * a + b]) / zeta;
        }
    return root;
}

// Squared distance of y from x that is permuted, into s.order, and rotated.
template <typename R>
R matched(const Plan &plan, const R *x, const R *y, R squares, Space<R> &s) {
    const int n = int(plan.n), dim = int(plan.dim);
    for (int k = 0; k < n; ++k) s.order[k] = k;
    std::copy(x, x + n * dim, s.turned.begin());
    double best = 0;
    for (int round = 0; round < plan.rounds; ++round) {
        int start = 0;
        for (int g = 0; g < plan.n_groups; ++g) {
            const int32_t *group = plan.members + start;
            const int size = int(plan.ends[g]) - start, width = int(padded(size));
            start = int(plan.ends[g]);
            // the cost of a member at a place
            R *columns = s.v.data();
            for (int a = 0; a < size; ++a) {
                R *row = s.cost.data() + a * width;
                for (int b = 0; b < width; ++b) row[b] = b < size ? R(0) : std::numeric_limits<R>::max();
            }
            for (int c = 0; c < dim; ++c) {
                for (int b = 0; b < width; ++b) columns[b] = b < size ? s.turned[dim * group[b] + c] : 0;
                for (int a = 0; a < size; ++a) {
                    const R there = y[dim * group[a] + c];
                    R *row = s.cost.data() + a * width;
                    #pragma omp simd
                    for (int b = 0; b < width; ++b) row[b] -= there * columns[b];
                }
            }
            if (width == W) assign<R, W>(s, size);
            else assign<R, 0>(s, size);
            for (int a = 0; a < size; ++a) s.order[group[a]] = group[s.column_of[a]];
        }
        double h[9] = {}, r[9];
        for (int k = 0; k < n; ++k) {
            const R *from = x + dim * s.order[k], *to = y + dim * k;
            for (int a = 0; a < dim; ++a)
                for (int b = 0; b < dim; ++b) h[dim * a + b] += double(from[a]) * double(to[b]);
        }
        if (!plan.rotate) {
            best = h[0] + h[dim + 1] + (dim == 3 ? h[8] : 0);
            continue;
        }
        const bool last = round + 1 == plan.rounds;
        for (int a = 0; a < dim; ++a)
            for (int b = 0; b < dim; ++b) r[dim * a + b] = a == b;
        best = overlap(h, plan, last ? nullptr : r);
        if (last) break;
        for (int k = 0; k < n; ++k)
            for (int b = 0; b < dim; ++b) {
                double sum = 0;
                for (int a = 0; a < dim; ++a) sum += double(x[dim * k + a]) * r[dim * a + b];
                s.turned[dim * k + b] = R(sum);
            }
    }
    return std::max(R(squares - 2 * best), R(0));
}

template <typename R>
R square(const R *x, int64_t n) {
    R sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += x[k] * x[k];
    return sum;
}

// Of non-finite rows the cost is NaN and the order that in which they came.
template <typename R>
void rows(const Plan &plan, const R *x, const R *y, int32_t *order, int64_t batch) {
    Space<R> s(plan.n, plan.dim);
    const int64_t size = plan.n * plan.dim;
    for (int64_t k = 0; k < batch; ++k) {
        const R squares = square(x + k * size, size) + square(y + k * size, size);
        if (std::isfinite(squares)) matched(plan, x + k * size, y + k * size, squares, s);
        else for (int i = 0; i < plan.n; ++i) s.order[i] = i;
        std::copy(s.order.begin(), s.order.end(), order + k * plan.n);
    }
}

template <typename R>
void pairs(const Plan &plan, const R *x, const R *y, R *cost, int64_t n_x, int64_t n_y) {
    Space<R> s(plan.n, plan.dim);
    const int64_t size = plan.n * plan.dim;
    std::vector<R> squares(n_x);
    for (int64_t j = 0; j < n_x; ++j) squares[j] = square(x + j * size, size);
    for (int64_t i = 0; i < n_y; ++i) {
        const R mine = square(y + i * size, size);
        for (int64_t j = 0; j < n_x; ++j) {
            const R both = squares[j] + mine;
            cost[i * n_x + j] = std::isfinite(both) ? matched(plan, x + j * size, y + i * size, both, s) : both - both;
        }
    }
}

}  // namespace

extern "C" {

// Of every row of x and y, (batch, n, dim), the order of the particles of x, (batch, n).
void match_rows(const Plan *plan, const double *x, const double *y, int32_t *order, int64_t batch) {
    rows(*plan, x, y, order, batch);
}

// Squared distances that are left of every y (n_y) from every x (n_x): (n_y, n_x).
void match_pairs(const Plan *plan, const float *x, const float *y, float *cost, int64_t n_x, int64_t n_y) {
    pairs(*plan, x, y, cost, n_x, n_y);
}
}
