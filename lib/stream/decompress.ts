/** Decompresses what comes in, straight into the sink's room where that is large enough. */
import { Fault } from '../fault.ts'
import type { Frame } from '../format/frame.ts'
import { decompress } from '../kernel/codec.ts'
import type { Inlet } from './link.ts'

type Packed = Extract<Frame, { type: 'packed' }>

export interface Decompressor {
  /**
   * Reads the bytes of `frame` and gives `frame.raw` bytes of the image `name` to `into`. Throws `DIGEST` where they
   * do not become so many, `TRUNCATED` where the stream ends, and `IO` where this host lacks the codec.
   */
  unpack(frame: Packed, name: string, into: Room): Promise<void>
}

/** Where the bytes of an image go. */
export interface Room {
  /** At least one byte. */
  room(wanted: number): Uint8Array
  wrote(bytes: Uint8Array): Promise<void>
}

/** `memory` counts what its buffers take. */
export function decompressor(inlet: Pick<Inlet, 'fill'>, memory?: { add(bytes: number): void }): Decompressor {
  // Each grows to the largest chunk that came.
  let packed = Buffer.alloc(0)
  let raw = Buffer.alloc(0)
  const larger = (old: typeof packed, bytes: number): typeof packed => {
    if (old.length >= bytes) return old
    memory?.add(bytes - old.length)
    return Buffer.allocUnsafeSlow(bytes)
  }
  return {
    async unpack(frame, name, into) {
      packed = larger(packed, frame.length)
      const bytes = packed.subarray(0, frame.length)
      if (!(await inlet.fill(bytes))) throw endedIn(name)
      const room = into.room(frame.raw)
      if (room.length < frame.raw) raw = larger(raw, frame.raw)
      const target = (room.length < frame.raw ? raw : room).subarray(0, frame.raw)
      if (!decompress(frame.codec, bytes, target)) {
        throw new Fault('DIGEST', `image ${name} is damaged: ${frame.codec} does not make ${frame.raw} bytes of it`, {
          hint: 'the link or a store changed it; send it again',
        })
      }
      if (room.length >= frame.raw) await into.wrote(target)
      else await copy(target, into)
    },
  }
}

async function copy(bytes: Uint8Array, into: Room): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const room = into.room(bytes.length - done)
    const part = room.subarray(0, Math.min(room.length, bytes.length - done))
    part.set(bytes.subarray(done, done + part.length))
    await into.wrote(part)
    done += part.length
  }
}

/** Gives `bytes` zero bytes. */
export async function fillZeros(bytes: number, into: Room): Promise<void> {
  for (let left = bytes; left > 0; ) {
    const room = into.room(left)
    const part = room.subarray(0, Math.min(room.length, left))
    part.fill(0)
    await into.wrote(part)
    left -= part.length
  }
}

/** The fault of a stream that ends in the image `name`. */
export function endedIn(name: string): Fault {
  return new Fault('TRUNCATED', `the stream ended in image ${name}`, {
    hint: 'the sender was stopped or the link was cut',
  })
}
