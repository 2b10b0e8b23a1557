import { Readable } from 'node:stream'
import { Fault } from '../fault.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { ImageSource, OpenImage } from './image.ts'

/** The images of a source as a stream, each asked for when the one before it was taken. */
export class ImageStream extends Readable {
  readonly #source: ImageSource
  readonly #images: AsyncIterator<OpenImage>
  #ended = false
  /** Resolves when the source has let go of what it holds. */
  released: Promise<unknown> = Promise.resolve()

  constructor(source: ImageSource) {
    super({ objectMode: true, highWaterMark: 0 })
    this.#source = source
    this.#images = source.images[Symbol.asyncIterator]()
  }

  override _read(): void {
    this.#next().catch((reason: Error) => this.destroy(reason))
  }

  async #next(): Promise<void> {
    const { value, done } = await this.#images.next()
    this.#ended = done === true
    if (this.#ended) this.push(null)
    else if (!this.destroyed) this.push(value)
    else if (value.body.kind === 'pipe') closeFd(value.body.fd)
  }

  override _destroy(reason: Error | null, done: (reason: Error | null) => void): void {
    if (!this.#ended) {
      this.#source.destroy(reason ?? new Fault('ABORTED', 'the pipeline was stopped'))
      this.released = Promise.resolve(this.#images.return?.()).catch(() => {})
    }
    done(reason)
  }
}

/** The first stage of a sender: the images of `source`. */
export function imageStream(source: ImageSource): ImageStream {
  return new ImageStream(source)
}
