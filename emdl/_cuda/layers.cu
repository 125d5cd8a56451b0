// What happens to the codes between two convolutions, each in one pass over memory.
//
// Codes are (n, K, P), P the product of the axes; theta is (K,). REAL is float or double. Sums are made per block in a fixed
// order and finished by the caller: no atomics, the same bits on every run.

#ifndef REAL
#define REAL float
#endif
#define THREADS 128  // a power of two

__device__ REAL shrink(REAL u, REAL theta, int positive)
{
    if (positive) return u > theta ? u - theta : 0;
    return u > theta ? u - theta : (u < -theta ? u + theta : 0);
}

// Sum of `value` over the block; every thread gets it.
__device__ double block_sum(double value)
{
    __shared__ double parts[THREADS];
    __syncthreads();
    parts[threadIdx.x] = value;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    __syncthreads();
    return parts[0];
}

// (2): z = shrink(w + step c, theta), and w = z + beta (z - before) of the next layer. Grid: any number of blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
shrink_momentum(const REAL *w, const REAL *c, const REAL *before, const REAL *theta, REAL *z, REAL *w_next, REAL step, REAL beta,
                int positive, int K, long long P, long long total)
{
    for (long long e = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; e < total;
         e += static_cast<long long>(gridDim.x) * THREADS) {
        const REAL value = shrink(w[e] + step * c[e], theta[e / P % K], positive);
        z[e] = value;
        w_next[e] = value + beta * (value - before[e]);
    }
}

// x = shrink(w + step_i c, step_i penalty), with one penalty for each atom, or for each code, and of each signal two sums: partial[0, i, chunk] = sum (w - x) (x - z), whose
// sign tells when to restart, and partial[1, i, chunk] = sum (x - w)^2. Grid: x = chunk of signal i, `chunks` to a signal;
// `size` = K P.
extern "C" __global__ void __launch_bounds__(THREADS)
shrink_trial(const REAL *w, const REAL *c, const REAL *z, const REAL *penalty, const double *step, REAL *x, double *partial,
             int positive, int each_code, long long P, long long size, int chunks)
{
    const long long i = blockIdx.x / chunks;
    const REAL length = static_cast<REAL>(step[i]);
    double uphill = 0, distance = 0;
    for (long long e = static_cast<long long>(blockIdx.x % chunks) * THREADS + threadIdx.x; e < size;
         e += static_cast<long long>(chunks) * THREADS) {
        const long long at = i * size + e;
        const REAL value = shrink(w[at] + length * c[at], length * penalty[each_code ? at : e / P], positive);
        const double moved = static_cast<double>(w[at]) - value;
        x[at] = value;
        uphill += moved * (static_cast<double>(value) - z[at]);
        distance += moved * moved;
    }
    uphill = block_sum(uphill);
    distance = block_sum(distance);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = uphill;
        partial[gridDim.x + blockIdx.x] = distance;
    }
}

// Where a signal's trial x is accepted, z = x and w = x + beta_i (x - z); elsewhere both stay. Grid: any number of blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
advance(const REAL *w, const REAL *x, const REAL *z, const double *beta, const int *accepted, REAL *z_next, REAL *w_next,
        long long size, long long total)
{
    for (long long e = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; e < total;
         e += static_cast<long long>(gridDim.x) * THREADS) {
        const long long i = e / size;
        z_next[e] = accepted[i] ? x[e] : z[e];
        w_next[e] = accepted[i] ? x[e] + static_cast<REAL>(beta[i]) * (x[e] - z[e]) : w[e];
    }
}

// w = z + beta_i (z - before), one beta for each signal. Grid: any number of blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
extrapolate(const REAL *z, const REAL *before, const double *beta, REAL *w, long long size, long long total)
{
    for (long long e = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; e < total;
         e += static_cast<long long>(gridDim.x) * THREADS)
        w[e] = z[e] + static_cast<REAL>(beta[e / size]) * (z[e] - before[e]);
}

// (3): g_u = g_z [z != 0], and partial[k, chunk] = -sum sign(z) g_u. Grid: x = chunk, y = atom.
extern "C" __global__ void __launch_bounds__(THREADS)
gate(const REAL *g_z, const REAL *z, REAL *g_u, double *partial, int K, long long P, long long per_atom)
{
    const long long k = blockIdx.y;
    double sum = 0;
    for (long long e = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; e < per_atom;
         e += static_cast<long long>(gridDim.x) * THREADS) {
        const long long at = (e / P * K + k) * P + e % P;
        const REAL gradient = z[at] != 0 ? g_z[at] : 0;
        g_u[at] = gradient;
        sum -= z[at] > 0 ? gradient : -gradient;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[k * gridDim.x + blockIdx.x] = sum;
}

// (3): g_w = g_u - step c with c = D^T q; g_z = g_before + (1 + beta) g_w; g_before = -beta g_w. Grid: any number of blocks.
extern "C" __global__ void __launch_bounds__(THREADS)
spread(const REAL *g_u, const REAL *c, const REAL *g_before, REAL *g_z, REAL *g_next, REAL step, REAL beta, long long total)
{
    for (long long e = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; e < total;
         e += static_cast<long long>(gridDim.x) * THREADS) {
        const REAL g_w = g_u[e] - step * c[e];
        g_z[e] = g_before[e] + (1 + beta) * g_w;
        g_next[e] = -beta * g_w;
    }
}
