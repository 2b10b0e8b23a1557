/** Decompresses what comes in, straight into the sink's room where that is large enough. */
import type { FrameOf } from '../format/frame-types.ts'
import { decompress } from '../kernel/codec.ts'
import type { IncomingImage } from './incoming-image.ts'
import type { Inlet } from './link.ts'

export class Decompressor {
  readonly #inlet: Pick<Inlet, 'fill'>
  readonly #memory: { add(bytes: number): void } | undefined
  /** Buffers for one chunk. Each grows to the largest that came. */
  #packed = Buffer.alloc(0)
  #raw = Buffer.alloc(0)

  /** `memory` counts what its buffers take. */
  constructor(inlet: Pick<Inlet, 'fill'>, memory: { add(bytes: number): void } | undefined) {
    this.#inlet = inlet
    this.#memory = memory
  }

  /**
   * Reads the bytes of `frame`, which are the next `frame.raw` bytes of `image`. Throws `DIGEST` where they do not
   * become so many, `TRUNCATED` where the stream ends, and `IO` where this host lacks the codec.
   */
  async unpack({ codec, length, raw }: FrameOf<'packed'>, image: IncomingImage): Promise<void> {
    this.#packed = this.#atLeast(length, this.#packed)
    const packed = this.#packed.subarray(0, length)
    if (!(await this.#inlet.fill(packed))) throw image.truncated()
    const room = image.room(raw)
    const fits = room.length === raw
    if (!fits) this.#raw = this.#atLeast(raw, this.#raw)
    const target = fits ? room : this.#raw.subarray(0, raw)
    if (!decompress(codec, packed, target)) throw image.damaged(`${codec} does not make ${raw} bytes of it`)
    if (fits) await image.wrote(target)
    else await image.write(raw, (part, done) => part.set(target.subarray(done, done + part.length)))
  }

  /** Returns `buffer`, or a larger one where it has fewer than `bytes` bytes. */
  #atLeast(bytes: number, buffer: Buffer<ArrayBuffer>): Buffer<ArrayBuffer> {
    if (buffer.length >= bytes) return buffer
    this.#memory?.add(bytes - buffer.length)
    return Buffer.allocUnsafeSlow(bytes)
  }
}
