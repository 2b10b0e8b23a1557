/** What the target of a hand-over says, as promises. */
import { Fault } from '../fault.ts'
import type { Fate } from '../format/enums.ts'
import { openCondition } from '../stream/condition.ts'
import type { DedupSender } from '../stream/dedup-send.ts'
import { accepting, type FrameReader } from '../stream/frames.ts'
import { defer } from '../stream/wait.ts'

export interface TargetAnswers {
  /** Resolves when the target has acknowledged so many images. */
  taken(images: number): Promise<void>
  sealed: Promise<bigint>
  ready: Promise<void>
  fate: Promise<Fate>
  reserved: Promise<void>
  /** Never resolves; rejects when the target refuses or goes away. */
  offer: Promise<never>
}

const greeting = accepting('hello')
const answers = accepting('ack', 'sealed', 'ready', 'reserved', 'fate', 'refused')
const answersAndOffers = accepting('ack', 'sealed', 'ready', 'reserved', 'fate', 'refused', 'recalled')

/** What it says, each as a promise that its refusal or its absence rejects; what it offers goes to `known`. */
export function readAnswers(reader: FrameReader, begun: boolean, known?: DedupSender): TargetAnswers {
  const [sealed, ready, fate, offer] = [defer<bigint>(), defer<void>(), defer<Fate>(), defer<never>()]
  const reserved = defer<void>()
  const refuse = (reason: unknown): void => {
    for (const wait of [sealed, ready, offer, reserved]) wait.reject(reason)
  }
  const [news, acks] = [openCondition(), { count: 0 }]
  const taken = async (images: number): Promise<void> => {
    while (acks.count < images) await news.wait()
  }
  const listen = async (): Promise<void> => {
    const gone = (): Fault => new Fault('LINK', 'the target closed the link')
    if (!begun && (await reader.next(greeting)) === undefined) throw gone()
    for (;;) {
      const frame = await reader.next(known === undefined ? answers : answersAndOffers)
      if (frame === undefined) throw gone()
      if (frame.type === 'sealed') sealed.resolve(frame.digest)
      else if (frame.type === 'ready') ready.resolve()
      else if (frame.type === 'reserved') reserved.resolve()
      else if (frame.type === 'fate') fate.resolve(frame.fate)
      else if (frame.type === 'recalled') known?.take(frame)
      // It may still take a verdict.
      else if (frame.type === 'refused') refuse(new Fault(frame.code, `the target refused: ${frame.reason}`))
      else acks.count++
      news.notify()
    }
  }
  listen().catch((reason: unknown) => {
    refuse(reason)
    fate.reject(reason)
  })
  const [sealing, reserving] = [sealed.promise, reserved.promise]
  return { taken, sealed: sealing, ready: ready.promise, fate: fate.promise, reserved: reserving, offer: offer.promise }
}
