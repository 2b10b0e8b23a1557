/** The stage `link`: frames go out, each whole, by the fastest way that the link has. */
import { Writable } from 'node:stream'
import { Fault } from '../fault.ts'
import { HEADER_BYTES } from '../format/frame.ts'
import type { CriuTimeout } from './criu-timeout.ts'
import { type EncodedPart, Frames, fillFrame, headOf } from './encode-frames.ts'
import { type FrameWriter, frameWriter } from './frames.ts'
import type { PipedImage } from './image-part.ts'
import type { Link } from './link.ts'
import { writableLink } from './node-link.ts'

/** How long a link may take what is under way when the pipeline has failed. */
const GIVE_UP_MS = 5000

export interface LinkStageOptions {
  /** CRIU is not waited for while the link is. */
  silence?: CriuTimeout | undefined
  /** Called when all is written. */
  finish?: () => Promise<void>
  /** Called when the pipeline has failed and the receiver was told. */
  close?: () => void
}

export class LinkStage extends Writable {
  readonly #writer: FrameWriter
  readonly #options: LinkStageOptions
  /** What the receiver is told first, until anything was written. */
  #beginning: EncodedPart | undefined
  /** What is being written; never rejects. */
  #writing = Promise.resolve()
  /** Resolves when nothing of a stage that was destroyed is used any more. */
  released = Promise.resolve()

  constructor(writer: FrameWriter, options: LinkStageOptions = {}) {
    super({ objectMode: true })
    this.#writer = writer
    this.#options = options
    this.once('pipe', (from) => {
      if (from instanceof Frames) this.#beginning = from.beginning
    })
  }

  override _write(encoded: EncodedPart, _encoding: string, done: (error?: Error | null) => void): void {
    this.#beginning = undefined
    const sending = this.#send(encoded)
    this.#writing = (this.#options.silence?.during(sending) ?? sending).then(() => done(), done)
  }

  override _final(done: (error?: Error | null) => void): void {
    const { finish = async () => {} } = this.#options
    finish().then(() => done(), done)
  }

  override _destroy(reason: Error | null, done: (error: Error | null) => void): void {
    if (!this.writableFinished) this.released = this.#giveUp(reason ?? new Fault('ABORTED', 'the sender was stopped'))
    done(reason)
  }

  /** Tells the receiver why no end comes. The missing end tells it enough where the link does not carry this. */
  async #giveUp(reason: Error): Promise<void> {
    const { close = () => {} } = this.#options
    const timer = setTimeout(close, GIVE_UP_MS).unref()
    try {
      await this.#writing
      if (!(reason instanceof Fault) || reason.code === 'LINK') return
      const code = reason.code === 'ABORTED' || reason.code === 'TIMEOUT' ? reason.code : 'FAILED_DUMP'
      if (this.#beginning !== undefined) await this.#sendFrames(this.#beginning.frames)
      await this.#writer.send({ type: 'failed', code, reason: reason.message })
    } catch {
      // The link is gone.
    } finally {
      clearTimeout(timer)
      close()
    }
  }

  async #send({ frames, pipe, part }: EncodedPart): Promise<void> {
    if (part?.begin() === false) return
    try {
      if (part !== undefined && pipe !== undefined) part.tap = () => this.#sendPipe(pipe)
      const bytes = await this.#sendFrames(frames)
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

  #sendPipe(pipe: PipedImage): Promise<number> {
    const { image, reader, most, byReference } = pipe
    const sending = this.#writer.exclusive(async (outlet) => {
      const before = image.size
      if (byReference) {
        await outlet.passOn?.(
          () => reader.untouched,
          most,
          (bytes) => headOf(pipe, bytes),
        )
      }
      if (image.size === before) await outlet.fillInPlace?.(HEADER_BYTES, most, (room) => fillFrame(pipe, room))
      return image.size - before + HEADER_BYTES
    })
    return this.#options.silence?.during(sending) ?? sending
  }
}

/** The last stage of a sender: one snapshot over `to`, which ends with it. */
export function link(to: Link | Writable): LinkStage {
  const { outlet, destroy } = to instanceof Writable ? writableLink(to, 'stream') : to
  return new LinkStage(frameWriter(outlet), {
    close: destroy,
    async finish() {
      await outlet.finish()
      if (!(to instanceof Writable)) destroy()
    },
  })
}
