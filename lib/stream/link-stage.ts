/** The stage `link`: frames go out, each whole, by the fastest way that the link has. */
import { Writable } from 'node:stream'
import { Fault } from '../fault.ts'
import { HEADER_BYTES } from '../format/wire.ts'
import type { CriuTimeout } from './criu-timeout.ts'
import type { EncodedPart, EncodedPipe } from './encode-frames.ts'
import { type FrameWriter, frameWriter } from './frames.ts'
import type { Link, Outlet } from './link.ts'
import { writableLink } from './node-link.ts'

export interface LinkStageOptions {
  /** CRIU is not waited for while the link is. */
  silence?: CriuTimeout | undefined
  /** Called when all is written. */
  finish?: () => Promise<void>
}

export class LinkStage extends Writable {
  readonly #writer: FrameWriter
  readonly #silence: CriuTimeout | undefined
  readonly #finish: () => Promise<void>
  #begun = false
  /** What is being written; never rejects. */
  #writing = Promise.resolve()

  constructor(writer: FrameWriter, { silence, finish = async () => {} }: LinkStageOptions = {}) {
    super({ objectMode: true })
    this.#writer = writer
    this.#silence = silence
    this.#finish = finish
  }

  override _write(encoded: EncodedPart, _encoding: string, done: (error?: Error | null) => void): void {
    this.#begun = true
    const sending = this.#send(encoded)
    this.#writing = (this.#silence?.during(sending) ?? sending).then(() => done(), done)
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#finish().then(() => done(), done)
  }

  /**
   * Tells the receiver why no end comes, after the `beginning` if nothing was written yet. The missing end tells it
   * enough where the link does not carry this.
   */
  async giveUp(reason: unknown, beginning?: EncodedPart): Promise<void> {
    await this.#writing
    if (!(reason instanceof Fault) || reason.code === 'LINK') return
    const code = reason.code === 'ABORTED' || reason.code === 'TIMEOUT' ? reason.code : 'FAILED_DUMP'
    try {
      if (!this.#begun && beginning !== undefined) await this.#sendFrames(beginning.frames)
      await this.#writer.send({ type: 'failed', code, reason: reason.message })
    } catch {
      // The link is gone.
    }
  }

  async #send({ frames, pipe, part }: EncodedPart): Promise<void> {
    if (part?.begin() === false) return
    try {
      const bytes = pipe === undefined ? await this.#sendFrames(frames) : await this.#sendPipe(pipe)
      part?.sent(bytes)
    } catch (reason) {
      part?.failed(reason)
      throw reason
    }
  }

  #sendFrames(frames: EncodedPart['frames']): Promise<number> {
    return this.#writer.exclusive(async (outlet) => {
      let sent = 0
      for (const { head, bytes } of frames) {
        await outlet.send(head, bytes !== undefined)
        if (bytes !== undefined) await outlet.send(bytes)
        sent += head.length + (bytes?.length ?? 0)
      }
      return sent
    })
  }

  #sendPipe(pipe: EncodedPipe): Promise<number> {
    return this.#writer.exclusive(async (outlet) => {
      const { image, most, byReference } = pipe.bytes
      const before = image.size
      if (!byReference || !(await passOn(outlet, pipe))) {
        await outlet.fillInPlace?.(HEADER_BYTES, most, (room) => pipe.fill(room))
      }
      return image.size - before + HEADER_BYTES
    })
  }
}

/** Lets the link take pages by reference. Returns false where it takes none. */
async function passOn(outlet: Outlet, pipe: EncodedPipe): Promise<boolean> {
  const { reader, most } = pipe.bytes
  const fd = reader.untouched
  return fd !== undefined && ((await outlet.passOn?.(fd, most, (bytes) => pipe.head(bytes))) ?? 0) > 0
}

/** The last stage of a sender: one snapshot over `to`, which ends with it. */
export function link(to: Link | Writable): LinkStage {
  if (to instanceof Writable) {
    const { outlet } = writableLink(to, 'stream')
    return new LinkStage(frameWriter(outlet), { finish: outlet.finish })
  }
  return new LinkStage(frameWriter(to.outlet), {
    async finish() {
      await to.outlet.finish()
      to.destroy()
    },
  })
}
