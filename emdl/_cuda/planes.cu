// The model and its adjoints for small atoms, by direct sums out of shared memory.
//
// Signals are planes (n, C, H, W), atoms (K, C, h, w), codes (n, K, PH, PW), all contiguous; a signal with one axis is a
// plane of height one. REAL is float or double, chosen when this is compiled. A block makes one tile of rows x columns
// values, each thread PER of them, neighbouring threads neighbouring values, so that reads of shared memory do not
// collide. Every sum has a fixed order: no atomics, the same bits on every run.

#ifndef REAL
#define REAL float
#endif
#ifdef __CUDACC__  // on a CPU the test harness gives this memory
extern __shared__ __align__(16) unsigned char memory[];
#endif

#define THREADS 128
#define PER 4   // values of one thread

// out[i, k, p, q] = sum_{c a b} D[k, c, a, b] r[i, c, p sh + a, q sw + b]
// Grid: x = tile of signal i, y = group of BANK atoms. Shared: BANK h w + ((rows - 1) sh + h) ((columns - 1) sw + w).
template <int BANK>
__device__ void analyze(const REAL *r, const REAL *D, REAL *out, int C, int H, int W, int K, int h, int w, int PH, int PW, int sh,
                        int sw, int rows, int columns)
{
    const int patch_rows = (rows - 1) * sh + h, patch_columns = (columns - 1) * sw + w;
    REAL *bank = reinterpret_cast<REAL *>(memory);
    REAL *patch = bank + BANK * h * w;
    const int across = (PW + columns - 1) / columns, tiles = across * ((PH + rows - 1) / rows);
    const long long i = blockIdx.x / tiles;
    const int tile = blockIdx.x % tiles, p0 = tile / across * rows, q0 = tile % across * columns;
    const int k0 = blockIdx.y * BANK;

    REAL sum[PER][BANK];
    int at[PER];
    for (int j = 0; j < PER; ++j) {
        const int l = threadIdx.x + j * THREADS;
        at[j] = l < rows * columns ? l / columns * sh * patch_columns + l % columns * sw : 0;
        for (int m = 0; m < BANK; ++m) sum[j][m] = 0;
    }
    for (int c = 0; c < C; ++c) {
        __syncthreads();
        for (int e = threadIdx.x; e < patch_rows * patch_columns; e += THREADS) {
            const int u = p0 * sh + e / patch_columns, v = q0 * sw + e % patch_columns;
            patch[e] = u < H && v < W ? r[((i * C + c) * H + u) * W + v] : 0;
        }
        for (int e = threadIdx.x; e < BANK * h * w; e += THREADS) {
            const int k = k0 + e % BANK;
            bank[e] = k < K ? D[(static_cast<long long>(k) * C + c) * h * w + e / BANK] : 0;
        }
        __syncthreads();
        for (int a = 0; a < h; ++a)
            for (int b = 0; b < w; ++b) {
                const REAL *d = bank + (a * w + b) * BANK, *x = patch + a * patch_columns + b;
#pragma unroll
                for (int j = 0; j < PER; ++j) {
                    const REAL value = x[at[j]];
#pragma unroll
                    for (int m = 0; m < BANK; ++m) sum[j][m] += value * d[m];
                }
            }
    }
    for (int j = 0; j < PER; ++j) {
        const int l = threadIdx.x + j * THREADS, p = p0 + l / columns, q = q0 + l % columns;
        if (l >= rows * columns || p >= PH || q >= PW) continue;
        for (int m = 0; m < BANK && k0 + m < K; ++m) out[((i * K + k0 + m) * PH + p) * PW + q] = sum[j][m];
    }
}

#define ANALYZE(NAME, BANK)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                  \
    NAME(const REAL *r, const REAL *D, REAL *out, int C, int H, int W, int K, int h, int w, int PH, int PW, int sh, int sw, \
         int rows, int columns)                                                                                            \
    {                                                                                                                      \
        analyze<BANK>(r, D, out, C, H, W, K, h, w, PH, PW, sh, sw, rows, columns);                                         \
    }

ANALYZE(analyze_4, 4)
ANALYZE(analyze_8, 8)

// out[i, c, u, v] = base[i, c, u, v] + sign sum_{k a b} z[i, k, (u - a) / sh, (v - b) / sw] D[k, c, a, b]
// over taps for which the code position is a whole number. Atoms without a code near the tile are skipped.
// Grid: x = tile of signal i, y = group of CHANNELS channels.
// Shared: CHANNELS h w + ((rows - 1) / sh + 1 + ceil(h / sh)) ((columns - 1) / sw + 1 + ceil(w / sw)).
template <int CHANNELS, bool UNIT_STRIDE>
__device__ void synthesize(const REAL *z, const REAL *D, const REAL *base, REAL *out, REAL sign, int add, int C, int H, int W,
                           int K, int h, int w, int PH, int PW, int sh, int sw, int rows, int columns)
{
    if (UNIT_STRIDE) sh = sw = 1;
    const int mh = (h + sh - 1) / sh, mw = (w + sw - 1) / sw;  // codes along each axis that reach one sample
    const int patch_rows = (rows - 1) / sh + 1 + mh, patch_columns = (columns - 1) / sw + 1 + mw;
    REAL *bank = reinterpret_cast<REAL *>(memory);
    REAL *patch = bank + CHANNELS * h * w;
    const int across = (W + columns - 1) / columns, tiles = across * ((H + rows - 1) / rows);
    const long long i = blockIdx.x / tiles;
    const int tile = blockIdx.x % tiles, u0 = tile / across * rows, v0 = tile % across * columns;
    const int p0 = u0 / sh - mh + 1, q0 = v0 / sw - mw + 1, c0 = blockIdx.y * CHANNELS;

    REAL sum[PER][CHANNELS];
    int at[PER], phase_h[PER], phase_w[PER];
    for (int j = 0; j < PER; ++j) {
        const int l = threadIdx.x + j * THREADS;
        const int u = l < rows * columns ? u0 + l / columns : u0, v = l < rows * columns ? v0 + l % columns : v0;
        at[j] = (u / sh - p0) * patch_columns + v / sw - q0;
        phase_h[j] = u % sh;
        phase_w[j] = v % sw;
        for (int c = 0; c < CHANNELS; ++c) sum[j][c] = 0;
    }
    for (int k = 0; k < K; ++k) {
        int any = 0;
        __syncthreads();
        for (int e = threadIdx.x; e < patch_rows * patch_columns; e += THREADS) {
            const int p = p0 + e / patch_columns, q = q0 + e % patch_columns;
            const REAL value = p >= 0 && p < PH && q >= 0 && q < PW ? z[((i * K + k) * PH + p) * PW + q] : 0;
            patch[e] = value;
            any |= value != 0;
        }
        for (int e = threadIdx.x; e < CHANNELS * h * w; e += THREADS) {
            const int c = c0 + e % CHANNELS;
            bank[e] = c < C ? D[(static_cast<long long>(k) * C + c) * h * w + e / CHANNELS] : 0;
        }
        if (!__syncthreads_or(any)) continue;
        for (int a = 0; a < mh; ++a)
            for (int b = 0; b < mw; ++b)
#pragma unroll
                for (int j = 0; j < PER; ++j) {
                    const int tap_h = UNIT_STRIDE ? a : phase_h[j] + a * sh, tap_w = UNIT_STRIDE ? b : phase_w[j] + b * sw;
                    if (!UNIT_STRIDE && (tap_h >= h || tap_w >= w)) continue;
                    const REAL value = patch[at[j] - a * patch_columns - b];
                    const REAL *d = bank + (tap_h * w + tap_w) * CHANNELS;
#pragma unroll
                    for (int c = 0; c < CHANNELS; ++c) sum[j][c] += value * d[c];
                }
    }
    for (int j = 0; j < PER; ++j) {
        const int l = threadIdx.x + j * THREADS, u = u0 + l / columns, v = v0 + l % columns;
        if (l >= rows * columns || u >= H || v >= W) continue;
        for (int c = 0; c < CHANNELS && c0 + c < C; ++c) {
            const long long to = ((i * C + c0 + c) * H + u) * W + v;
            out[to] = add ? base[to] + sign * sum[j][c] : sign * sum[j][c];
        }
    }
}

#define SYNTHESIZE(NAME, CHANNELS, UNIT_STRIDE)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                  \
    NAME(const REAL *z, const REAL *D, const REAL *base, REAL *out, REAL sign, int add, int C, int H, int W, int K, int h, \
         int w, int PH, int PW, int sh, int sw, int rows, int columns)                                                     \
    {                                                                                                                      \
        synthesize<CHANNELS, UNIT_STRIDE>(z, D, base, out, sign, add, C, H, W, K, h, w, PH, PW, sh, sw, rows, columns);    \
    }

SYNTHESIZE(synthesize_1, 1, true)
SYNTHESIZE(synthesize_4, 4, true)
SYNTHESIZE(synthesize_strided_1, 1, false)
SYNTHESIZE(synthesize_strided_4, 4, false)

// partial[chunk, k, c, a, b] = sum_{i p q in the chunk} z[i, k, p, q] r[i, c, p sh + a - oh, q sw + b - ow], r = 0 outside.
// A chunk is `per_chunk` tiles of code positions. A thread holds PER taps and walks over the codes of a tile: all threads
// see the same code, so zeros cost a comparison, and a tile without codes costs its reading alone.
// Grid: x = chunk, y = k, z = group of `channels` channels times group of THREADS PER taps.
// Shared: rows columns + channels ((rows - 1) sh + h) ((columns - 1) sw + w).
extern "C" __global__ void __launch_bounds__(THREADS)
correlate(const REAL *z, const REAL *r, double *partial, int n, int K, int PH, int PW, int C, int H, int W, int h, int w, int oh,
          int ow, int sh, int sw, int rows, int columns, int channels, int per_chunk)
{
    const int patch_rows = (rows - 1) * sh + h, patch_columns = (columns - 1) * sw + w, plane = patch_rows * patch_columns;
    REAL *codes = reinterpret_cast<REAL *>(memory);
    REAL *patch = codes + rows * columns;
    const int across = (PW + columns - 1) / columns, tiles = across * ((PH + rows - 1) / rows), k = blockIdx.y;
    const int groups = (channels * h * w + THREADS * PER - 1) / (THREADS * PER);
    const int c0 = blockIdx.z / groups * channels, first = blockIdx.z % groups * THREADS * PER + threadIdx.x;

    double total[PER];
    int at[PER];
    for (int j = 0; j < PER; ++j) {
        const int o = first + j * THREADS, tap = o % (h * w);
        at[j] = o < channels * h * w ? o / (h * w) * plane + tap / w * patch_columns + tap % w : 0;
        total[j] = 0;
    }
    const long long from = static_cast<long long>(blockIdx.x) * per_chunk, all = static_cast<long long>(n) * tiles;
    for (long long t = from; t < from + per_chunk && t < all; ++t) {
        const long long i = t / tiles;
        const int p0 = static_cast<int>(t % tiles) / across * rows, q0 = static_cast<int>(t % tiles) % across * columns;
        int any = 0;
        __syncthreads();
        for (int e = threadIdx.x; e < rows * columns; e += THREADS) {
            const int p = p0 + e / columns, q = q0 + e % columns;
            codes[e] = p < PH && q < PW ? z[((i * K + k) * PH + p) * PW + q] : 0;
            any |= codes[e] != 0;
        }
        if (!__syncthreads_or(any)) continue;
        for (int e = threadIdx.x; e < channels * plane; e += THREADS) {
            const int c = c0 + e / plane, u = p0 * sh - oh + e % plane / patch_columns;
            const int v = q0 * sw - ow + e % plane % patch_columns;
            patch[e] = c < C && u >= 0 && u < H && v >= 0 && v < W ? r[((i * C + c) * H + u) * W + v] : 0;
        }
        __syncthreads();
        REAL sum[PER];
        for (int j = 0; j < PER; ++j) sum[j] = 0;
        for (int p = 0; p < rows; ++p)
            for (int q = 0; q < columns; ++q) {
                const REAL code = codes[p * columns + q];
                if (code == 0) continue;
                const REAL *x = patch + p * sh * patch_columns + q * sw;
#pragma unroll
                for (int j = 0; j < PER; ++j) sum[j] += code * x[at[j]];
            }
        for (int j = 0; j < PER; ++j) total[j] += sum[j];
    }
    for (int j = 0; j < PER; ++j) {
        const int o = first + j * THREADS, c = c0 + o / (h * w);
        if (o >= channels * h * w || c >= C) continue;
        partial[((static_cast<long long>(blockIdx.x) * K + k) * C + c) * h * w + o % (h * w)] = total[j];
    }
}
