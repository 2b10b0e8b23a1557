/**
 * zstd and lz4: the system's own libraries, which apt and dpkg depend on, loaded when they are first used.
 *
 * Compressing is done on libuv's threads, so that CRIU's pipes are read meanwhile; decompressing takes a third of the
 * time, and is done at once. Measured on heaps of node and python, a MiB at a time, on one core: zstd 1 compresses 700
 * to 800 MiB/s to a sixth or an eighth, lz4 1,100 MiB/s to a third; they decompress 1,800 and 3,500 MiB/s.
 */
import { Fault } from '../fault.ts'
import { type Call, callAside, type LoadedLibrary, loadLibrary } from './libc.ts'

export type Codec = 'zstd' | 'lz4'

/** One at a time may be under way. */
export interface Compressor {
  /**
   * Resolves with the bytes that `into` holds then, 0 where they do not fit. The buffers must stay as they are until
   * then.
   */
  aside(from: Uint8Array, into: Uint8Array): Promise<number>
  /** The same at once: for few bytes. */
  now(from: Uint8Array, into: Uint8Array): number
  /** Gives its memory back. */
  close(): void
}

const ZSTD_LEVEL = 1
const LZ4_ACCELERATION = 1

/** What is used of a library. */
interface Library {
  compressor(): Compressor
  /** Returns the bytes that `into` holds then; below 0 where they do not fit. */
  decompress(from: Uint8Array, into: Uint8Array): number
}

const packages: Record<Codec, string> = { zstd: 'libzstd1', lz4: 'liblz4-1' }

/** The bytes of a call on one of libuv's threads; 0 where it failed. */
async function aside<Args extends unknown[]>(call: Call<Args>, ...args: Args): Promise<number> {
  return Math.max(0, await callAside(call, ...args))
}

function useZstd(zstd: LoadedLibrary): Library {
  const open = zstd.func('void *ZSTD_createCCtx()') as () => unknown
  const close = zstd.func('size_t ZSTD_freeCCtx(void *)') as (context: unknown) => void
  // An error is a small negative number.
  const compress = zstd.func('int64_t ZSTD_compressCCtx(void *, void *, size_t, void *, size_t, int)') as Call<
    [context: unknown, into: Uint8Array, room: number, from: Uint8Array, bytes: number, level: number]
  >
  const decompress = zstd.func('int64_t ZSTD_decompress(void *, size_t, void *, size_t)') as Call<
    [into: Uint8Array, room: number, from: Uint8Array, bytes: number]
  >
  return {
    compressor() {
      const context = open()
      return {
        aside: (from, into) => aside(compress, context, into, into.length, from, from.length, ZSTD_LEVEL),
        now: (from, into) => Math.max(0, compress(context, into, into.length, from, from.length, ZSTD_LEVEL)),
        close: () => close(context),
      }
    },
    decompress: (from, into) => decompress(into, into.length, from, from.length),
  }
}

function useLz4(lz4: LoadedLibrary): Library {
  const compress = lz4.func('int LZ4_compress_fast(void *, void *, int, int, int)') as Call<
    [from: Uint8Array, into: Uint8Array, bytes: number, room: number, acceleration: number]
  >
  const decompress = lz4.func('int LZ4_decompress_safe(void *, void *, int, int)') as Call<
    [from: Uint8Array, into: Uint8Array, bytes: number, room: number]
  >
  const compressor: Compressor = {
    aside: (from, into) => aside(compress, from, into, from.length, into.length, LZ4_ACCELERATION),
    now: (from, into) => compress(from, into, from.length, into.length, LZ4_ACCELERATION),
    close() {},
  }
  return {
    compressor: () => compressor,
    decompress: (from, into) => decompress(from, into, from.length, into.length),
  }
}

const uses: Record<Codec, (loaded: LoadedLibrary) => Library> = { zstd: useZstd, lz4: useLz4 }
const libraries = new Map<Codec, Library>()

function library(codec: Codec): Library {
  const known = libraries.get(codec)
  if (known !== undefined) return known
  const file = `lib${codec}.so.1`
  const loaded = loadLibrary(file)
  if (loaded === undefined) {
    throw new Fault('IO', `cannot use ${codec}: there is no ${file} here`, { hint: `apt install ${packages[codec]}` })
  }
  const used = uses[codec](loaded)
  libraries.set(codec, used)
  return used
}

/** Throws `IO` where the library is not installed. */
export function compressor(codec: Codec): Compressor {
  return library(codec).compressor()
}

/**
 * Fills `into` with what `from` was, whatever `from` holds. Returns whether that was exactly so many bytes. Throws `IO`
 * where the library is not installed.
 */
export function decompress(codec: Codec, from: Uint8Array, into: Uint8Array): boolean {
  return library(codec).decompress(from, into) === into.length
}
