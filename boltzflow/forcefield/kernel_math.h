// exp, log and atan2 that any compiler turns into vector code: no calls, no branches, no tables.
//
// Plain truncated series after range reduction, so that the number of terms is all there is to tune; relative errors are a
// few units in the last place. NaN goes through exp and atan2; log is for positive normal numbers only.

#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace boltzflow {

template <class T> struct Bits;

template <> struct Bits<float> {
    using Word = uint32_t;
    static constexpr int mantissa = 23, bias = 127, exp_terms = 7, log_terms = 5, atan_terms = 5;
    static constexpr float exp_limit = 87.0f;
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // the high part has trailing zeros
};

template <> struct Bits<double> {
    using Word = uint64_t;
    static constexpr int mantissa = 52, bias = 1023, exp_terms = 13, log_terms = 11, atan_terms = 12;
    static constexpr double exp_limit = 708.0;
    static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
};

template <class T>
inline T exp(T x) {
    using B = Bits<T>;
    x = x < -B::exp_limit ? -B::exp_limit : x;
    x = x > B::exp_limit ? B::exp_limit : x;
    // Adding 1.5 * 2^mantissa rounds to an integer, which then stands in the lowest bits.
    constexpr T magic = T(typename B::Word(3) << (B::mantissa - 1));
    const T shifted = x * T(1.4426950408889634) + magic, k = shifted - magic;
    const T r = (x - k * B::ln2_high) - k * B::ln2_low;
    T sum = 1;
    for (int n = B::exp_terms; n >= 1; --n) sum = 1 + sum * r * T(1.0 / n);
    const auto integer = std::bit_cast<typename B::Word>(shifted) + typename B::Word(B::bias);
    return sum * std::bit_cast<T>(integer << B::mantissa);
}

template <class T>
inline T log(T x) {
    using B = Bits<T>;
    using Word = typename B::Word;
    const Word word = std::bit_cast<Word>(x);
    const Word one = Word(B::bias) << B::mantissa;
    T m = std::bit_cast<T>((word & ((Word(1) << B::mantissa) - 1)) | one);  // in [1, 2)
    // The exponent as a number without an integer conversion: put it under 2^mantissa and subtract that.
    const Word base = Word(B::bias + B::mantissa) << B::mantissa;
    T k = std::bit_cast<T>((word >> B::mantissa) | base) - (std::bit_cast<T>(base) + B::bias);
    const bool large = m > T(1.4142135623730951);
    m = large ? m * T(0.5) : m;
    k = large ? k + 1 : k;
    const T s = (m - 1) / (m + 1), s2 = s * s;  // |s| < 0.172, log m = 2 artanh s
    T sum = 0;
    for (int n = B::log_terms; n >= 1; --n) sum = T(1.0 / (2 * n + 1)) + sum * s2;
    return k * B::ln2_high + (2 * s + (2 * s * s2 * sum + k * B::ln2_low));
}

// The angle of (x, y) for y >= 0, in [0, pi].
template <class T>
inline T atan2_upper(T y, T x) {
    const T ax = x < 0 ? -x : x;
    const bool steep = y > ax;
    T t = (steep ? ax : y) / (steep ? y : ax);  // [0, 1]
    t = t / (1 + std::sqrt(1 + t * t));         // half the angle, twice: t < 0.199
    t = t / (1 + std::sqrt(1 + t * t));
    const T t2 = t * t;
    T sum = 0;
    for (int n = Bits<T>::atan_terms; n >= 0; --n) sum = T(1.0 / (2 * n + 1)) - sum * t2;
    T angle = 4 * t * sum;
    angle = steep ? T(1.5707963267948966) - angle : angle;
    return x < 0 ? T(3.1415926535897932) - angle : angle;
}

}  // namespace boltzflow
