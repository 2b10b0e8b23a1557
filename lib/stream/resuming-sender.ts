/** The sender's side of a conversation that outlives its link (see resumable.ts): it connects, and connects again. */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { encodePreamble } from '../format/preamble.ts'
import { encodeFrame } from '../format/wire.ts'
import { accepting, type FrameReader, frameReader } from './frames.ts'
import type { Link } from './link.ts'
import { openSession } from './open-session.ts'
import { takeReplayMemory } from './replay-memory.ts'
import type { Session } from './session.ts'

/** As much as is lost in the queues of a link of 1 Gbit/s and 60 ms when it breaks; more would only cost memory. */
export const SENDER_WINDOW = 8 * 2 ** 20
/** The receiver says little: its acks must not fill its window before it hears from us. */
const EVERY = 16 * 2 ** 10
const RETRY_MS = 100

const greeting = accepting('hello')
const answers = accepting('got', 'refused')

export interface ResumingOptions {
  id: SnapshotId
  /** Random: whoever shows it is us. */
  token: Buffer
  until: Until
  /** May try for as long as it likes until the signal comes; rejects with its reason. */
  connect: (signal: AbortSignal) => Promise<Link>
  timeoutMs: number
}

/** Connects; the receiver learns `id` and `until`, and its `hello` is read. */
export function resumingSender({ id, token, until, connect, timeoutMs }: ResumingOptions): Session {
  const session = openSession({
    peer: `snapshot ${id}`,
    window: SENDER_WINDOW,
    ring: takeReplayMemory(SENDER_WINDOW),
    end: 'sender',
    every: EVERY,
    timeoutMs,
  })
  const greetings = (): Buffer =>
    Buffer.concat([
      encodePreamble(),
      encodeFrame({ type: 'snapshot', id }),
      encodeFrame({ type: 'handOver', until, token }),
    ])
  const resume = (): Buffer =>
    Buffer.concat([encodePreamble(), encodeFrame({ type: 'resume', offset: session.received, token, id })])

  /** Returns whether the receiver knows the conversation. */
  async function greet(link: Link, anew: boolean): Promise<boolean> {
    await link.outlet.send(anew ? greetings() : resume())
    const reader = frameReader(link.inlet)
    await reader.expect(greeting)
    if (anew) session.attach(link, 0)
    else return goOn(link, reader)
    return true
  }

  async function goOn(link: Link, reader: FrameReader): Promise<boolean> {
    const answer = await reader.expect(answers)
    if (answer.type === 'got') session.attach(link, answer.offset)
    // It may never have seen the first link's greeting.
    else if (answer.code === 'MISSING' && session.untouched) return false
    else throw new Fault(answer.code, `the target refused to go on: ${answer.reason}`)
    return true
  }

  /** One link, to its end. Returns whether the next one begins anew. */
  async function oneLink(link: Link, anew: boolean): Promise<boolean> {
    const cut = (): void => link.destroy(session.over.reason as Error)
    session.over.addEventListener('abort', cut)
    const silent = globalThis.setTimeout(() => {
      link.destroy(new Fault('LINK', `no greeting within ${session.quietMs / 1000} s`))
    }, session.quietMs)
    try {
      if (!(await greet(link, anew))) return true
      clearTimeout(silent)
      await session.detached()
      return false
    } finally {
      clearTimeout(silent)
      session.over.removeEventListener('abort', cut)
      link.destroy()
    }
  }

  async function connected(): Promise<void> {
    let anew = true
    for (let begun = false; ; ) {
      try {
        const link = await connect(session.over)
        if (!begun) session.watch()
        begun = true
        anew = await oneLink(link, anew)
      } catch (reason) {
        session.over.throwIfAborted()
        if (!begun || !mends(reason)) throw reason
        session.blame(reason)
        anew = false
      }
      await setTimeout(RETRY_MS, undefined, { signal: session.over })
    }
  }
  connected().catch((reason: unknown) => session.link.destroy(reason as Error))
  return session
}

/** Whether another link may do what this one did not. */
function mends(reason: unknown): reason is Fault {
  return reason instanceof Fault && (reason.code === 'LINK' || reason.code === 'TRUNCATED')
}
