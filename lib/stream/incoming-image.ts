import { Fault } from '../fault.ts'
import { type Digest, digest, NO_DIGEST } from '../format/digest.ts'
import type { ImageEntry } from '../format/image-list.ts'
import type { ImageName } from '../format/names.ts'
import { truncated } from './frames.ts'
import type { ImageWriter } from './image.ts'

/** An image, as far as it has come. */
export class IncomingImage {
  readonly name: ImageName
  readonly writer: ImageWriter
  /** Bytes that have come. */
  size = 0
  readonly #digest: Digest

  /** `checked`: its digest is computed. */
  constructor(name: ImageName, writer: ImageWriter, checked: boolean) {
    this.name = name
    this.writer = writer
    this.#digest = checked ? digest() : NO_DIGEST
  }

  /**
   * Writes the next `bytes` bytes where the sink wants them: `fill` puts those from `done` on into `room`. Where it
   * resolves to false the stream has ended, and this throws `TRUNCATED`. Throws what the sink throws.
   */
  async write(bytes: number, fill: (room: Uint8Array, done: number) => unknown): Promise<void> {
    for (let done = 0; done < bytes; ) {
      const room = this.room(bytes - done)
      if ((await fill(room, done)) === false) throw this.truncated()
      await this.wrote(room)
      done += room.length
    }
  }

  /** Where the next bytes go: at least one byte, at most `most`. */
  room(most: number): Uint8Array {
    const room = this.writer.room(most)
    return room.length > most ? room.subarray(0, most) : room
  }

  /** All of the last `room` is filled. */
  async wrote(room: Uint8Array): Promise<void> {
    this.#digest.update(room)
    await this.writer.wrote(room.length)
    this.size += room.length
  }

  /** The next bytes are these, and lie where they belong. */
  add(bytes: Uint8Array): void {
    this.#digest.update(bytes)
    this.size += bytes.length
  }

  /** The image is complete. */
  finish(): ImageEntry {
    return { name: this.name, size: this.size, digest: this.#digest.finish() }
  }

  /** The fault of a stream that ends in this image. */
  truncated(): Fault {
    return truncated(`in image ${this.name}`)
  }

  /** The fault of an image that is not what was sent; `how` says what is wrong. */
  damaged(how: string): Fault {
    return new Fault('DIGEST', `image ${this.name} is damaged: ${how}`, {
      hint: 'the link or a store changed it; send it again',
    })
  }
}
