/** What the target of a hand-over answers, as promises. */
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import type { Fate } from '../format/enums.ts'
import { openCondition } from '../stream/condition.ts'
import type { DedupSender } from '../stream/dedup-send.ts'
import { accepting, type FrameReader } from '../stream/frames.ts'
import { defer } from '../stream/wait.ts'

const greeting = accepting('hello')
const answers = accepting('ack', 'sealed', 'ready', 'reserved', 'fate', 'refused')
const answersAndOffers = accepting('ack', 'sealed', 'ready', 'reserved', 'fate', 'refused', 'recalled')

/**
 * Reads what the target answers. Each promise rejects when the target refuses, or closes the link. `greeted`: its
 * `hello` was read already. `dedup` gets the pages that the target offers.
 */
export function readAnswers(reader: FrameReader, greeted: boolean, dedup?: DedupSender) {
  const [sealed, ready, reserved] = [defer<bigint>(), defer<void>(), defer<void>()]
  const [fate, offer] = [defer<Fate>(), defer<never>()]
  const refuse = (reason: unknown): void => {
    for (const wait of [sealed, ready, offer, reserved]) wait.reject(reason)
  }
  const answered = openCondition()
  let acks = 0
  const listen = async (): Promise<void> => {
    const gone = (): Fault => new Fault('LINK', 'the target closed the link')
    if (!greeted && (await reader.next(greeting)) === undefined) throw gone()
    for (;;) {
      const frame = await reader.next(dedup === undefined ? answers : answersAndOffers)
      if (frame === undefined) throw gone()
      if (frame.type === 'sealed') sealed.resolve(frame.digest)
      else if (frame.type === 'ready') ready.resolve()
      else if (frame.type === 'reserved') reserved.resolve()
      else if (frame.type === 'fate') fate.resolve(frame.fate)
      else if (frame.type === 'recalled') dedup?.take(frame)
      // `fate` stays open: a target that refuses may still take a verdict.
      else if (frame.type === 'refused') refuse(new Fault(frame.code, `the target refused: ${frame.reason}`))
      else acks++
      answered.notify()
    }
  }
  listen().catch((reason: unknown) => {
    refuse(reason)
    fate.reject(reason)
  })
  return {
    /** Resolves when the target has acknowledged so many images. */
    async taken(images: number): Promise<void> {
      while (acks < images) await answered.wait()
    },
    /** Resolves when the target has sealed what was sent. Throws `DIGEST` where it has sealed something else. */
    async whenSealed(sent: { digest: bigint }): Promise<void> {
      const digest = await sealed.promise
      if (digest === sent.digest) return
      throw new Fault('DIGEST', `the target sealed ${hex64(digest)}, sent was ${hex64(sent.digest)}`)
    },
    ready: ready.promise,
    fate: fate.promise,
    reserved: reserved.promise,
    /** Never resolves; rejects when the target refuses or goes away. */
    offer: offer.promise,
  }
}

export type TargetAnswers = ReturnType<typeof readAnswers>
