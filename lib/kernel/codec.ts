/**
 * zstd and lz4: the system's own libraries, which apt and dpkg depend on, loaded when they are first used.
 *
 * Compressing is done on libuv's threads, so that CRIU's pipes are read meanwhile; decompressing takes a third of the
 * time, and is done at once. Measured on heaps of node and python, a MiB at a time, on one core: zstd 1 compresses 700
 * to 800 MiB/s to a sixth or an eighth, lz4 1,100 MiB/s to a third; they decompress 1,800 and 3,500 MiB/s.
 */
import { Fault } from '../fault.ts'
import { loadLibrary } from './libc.ts'

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

const packages: Record<Codec, string> = { zstd: 'libzstd1', lz4: 'liblz4-1' }

function library(codec: Codec): NonNullable<ReturnType<typeof loadLibrary>> {
  const file = `lib${codec}.so.1`
  const loaded = loadLibrary(file)
  if (loaded !== undefined) return loaded
  throw new Fault('IO', `cannot use ${codec}: there is no ${file} here`, { hint: `apt install ${packages[codec]}` })
}

type Compress = (from: Uint8Array, into: Uint8Array) => number
type Decompress = Compress

interface Loaded {
  compressor(): Compressor
  decompress: Decompress
}

/** A call of a library: at once, or on one of libuv's threads. */
interface Call<Args extends unknown[]> {
  (...args: Args): number
  async(...args: [...Args, done: (error: unknown, result: number) => void]): void
}

function aside<Args extends unknown[]>(call: Call<Args>, ...args: Args): Promise<number> {
  return new Promise((resolve, reject) => {
    call.async(...args, (error, result) => (error ? reject(error) : resolve(Math.max(0, result))))
  })
}

function loadZstd(): Loaded {
  const zstd = library('zstd')
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

function loadLz4(): Loaded {
  const lz4 = library('lz4')
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

const loaders: Record<Codec, () => Loaded> = { zstd: loadZstd, lz4: loadLz4 }
const loaded = new Map<Codec, Loaded>()

function load(codec: Codec): Loaded {
  const known = loaded.get(codec) ?? loaders[codec]()
  loaded.set(codec, known)
  return known
}

/** Throws `IO` where the library is not installed. */
export function compressor(codec: Codec): Compressor {
  return load(codec).compressor()
}

/**
 * Fills `into` with what `from` was, whatever `from` holds. Returns whether that was exactly so many bytes. Throws `IO`
 * where the library is not installed.
 */
export function decompress(codec: Codec, from: Uint8Array, into: Uint8Array): boolean {
  return load(codec).decompress(from, into) === into.length
}
