/** What the target of a hand-over answers, as promises. */
import { Fault } from '../fault.ts'
import { hex64 } from '../format/digest.ts'
import type { Fate } from '../format/enums.ts'
import { openCondition } from '../stream/condition.ts'
import type { DedupSender } from '../stream/dedup-send.ts'
import { accepting, type FrameReader } from '../stream/frames.ts'
import { defer } from '../stream/wait.ts'

export interface TargetAnswers {
  /** Resolves when the target has acknowledged so many images. */
  taken(images: number): Promise<void>
  /** The digest of what it has sealed. */
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

/**
 * Reads what the target answers. Each promise rejects when the target refuses, or closes the link. `greeted`: its
 * `hello` was read already. `dedup` gets the pages that the target offers.
 */
export function readAnswers(reader: FrameReader, greeted: boolean, dedup?: DedupSender): TargetAnswers {
  const [sealed, ready, fate, offer] = [defer<bigint>(), defer<void>(), defer<Fate>(), defer<never>()]
  const reserved = defer<void>()
  const refuse = (reason: unknown): void => {
    for (const wait of [sealed, ready, offer, reserved]) wait.reject(reason)
  }
  const [answered, acks] = [openCondition(), { count: 0 }]
  const taken = async (images: number): Promise<void> => {
    while (acks.count < images) await answered.wait()
  }
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
      else acks.count++
      answered.notify()
    }
  }
  listen().catch((reason: unknown) => {
    refuse(reason)
    fate.reject(reason)
  })
  const [sealing, reserving] = [sealed.promise, reserved.promise]
  return { taken, sealed: sealing, ready: ready.promise, fate: fate.promise, reserved: reserving, offer: offer.promise }
}

/** Resolves when the target has sealed what was sent. Throws `DIGEST` where it has sealed something else. */
export async function whenSealed({ sealed }: TargetAnswers, sent: { digest: bigint }): Promise<void> {
  const digest = await sealed
  if (digest === sent.digest) return
  throw new Fault('DIGEST', `the target sealed ${hex64(digest)}, sent was ${hex64(sent.digest)}`)
}
