/** The sender's side of a conversation that outlives its links (see session.ts): it connects, and connects again. */
import { Fault } from '../fault.ts'
import type { Until } from '../format/enums.ts'
import { encodeFrame } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
import { encodePreamble } from '../format/preamble.ts'
import { accepting, frameReader } from './frames.ts'
import type { Link } from './link.ts'
import { ResumableSession } from './session.ts'
import { sleep } from './wait.ts'

const RETRY_MS = 100

const greeting = accepting('hello')
const answers = accepting('got', 'refused')

export interface ResumingOptions {
  id: SnapshotId
  /** Random: whoever shows it on another connection is the sender of this conversation. */
  token: Buffer
  until: Until
  /**
   * Makes a link. May try for as long as it likes until the signal is aborted; then it rejects with the signal's
   * reason.
   */
  connect: (signal: AbortSignal) => Promise<Link>
  /** See `SessionOptions`. */
  timeoutMs: number
}

/**
 * Begins a session whose links `connect` makes. The receiver is told `id` and `until`, and its `hello` is read. What
 * fails for good ends the session.
 */
export function resumingSender(options: ResumingOptions): ResumableSession {
  const { id, timeoutMs } = options
  const session = new ResumableSession({ peer: `snapshot ${id}`, role: 'sender', timeoutMs })
  keepConnected(session, options).catch((reason: unknown) => session.link.destroy(reason as Error))
  return session
}

/** Gives the session one link after the other. Throws what another link would not mend. */
async function keepConnected(session: ResumableSession, options: ResumingOptions): Promise<void> {
  let anew = true
  for (let begun = false; ; ) {
    try {
      const link = await options.connect(session.over)
      session.watch()
      begun = true
      anew = !(await useLink(session, link, options, anew))
    } catch (reason) {
      session.over.throwIfAborted()
      if (!begun || !mends(reason)) throw reason
      session.blame(reason)
      anew = false
    }
    await sleep(RETRY_MS, session.over)
  }
}

/**
 * Uses a link to its end. Returns whether the receiver knows the conversation: if not, the next link begins it anew.
 */
async function useLink(
  session: ResumableSession,
  link: Link,
  options: ResumingOptions,
  anew: boolean,
): Promise<boolean> {
  const cut = (): void => link.destroy(session.over.reason as Error)
  session.over.addEventListener('abort', cut)
  const silent = setTimeout(() => {
    link.destroy(new Fault('LINK', `no greeting within ${session.quietMs / 1000} s`))
  }, session.quietMs)
  try {
    const greeted = anew ? begin(session, link, options) : resume(session, link, options)
    const known = await greeted.finally(() => clearTimeout(silent))
    if (known) await session.detached()
    return known
  } finally {
    session.over.removeEventListener('abort', cut)
    link.destroy()
  }
}

/** Begins the conversation over `link`. */
async function begin(session: ResumableSession, link: Link, { id, until, token }: ResumingOptions): Promise<true> {
  const frames = [encodeFrame({ type: 'snapshot', id }), encodeFrame({ type: 'handOver', until, token })]
  await link.outlet.send(Buffer.concat([encodePreamble(), ...frames]))
  await frameReader(link.inlet).expect(greeting)
  session.attach(link, 0)
  return true
}

/** Goes on over `link`. Returns false where the receiver does not know the conversation. Throws its refusal. */
async function resume(session: ResumableSession, link: Link, { id, token }: ResumingOptions): Promise<boolean> {
  const frame = encodeFrame({ type: 'resume', offset: session.received, token, id })
  await link.outlet.send(Buffer.concat([encodePreamble(), frame]))
  const reader = frameReader(link.inlet)
  await reader.expect(greeting)
  const answer = await reader.expect(answers)
  if (answer.type === 'got') session.attach(link, answer.offset)
  // The receiver may never have read the first link's greeting.
  else if (answer.code === 'MISSING' && session.untouched) return false
  else throw new Fault(answer.code, `the target refused to go on: ${answer.reason}`)
  return true
}

/** Whether another link may succeed where this one failed. */
function mends(reason: unknown): reason is Fault {
  return reason instanceof Fault && (reason.code === 'LINK' || reason.code === 'TRUNCATED')
}
