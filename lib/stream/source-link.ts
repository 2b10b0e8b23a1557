/** The source's side of a hand-over's link: one connection, or a session that goes on over new ones. */
import { Fault } from '../fault.ts'
import { type FrameReader, type FrameWriter, frameReader, frameWriter } from './frames.ts'
import type { Link, Outlet } from './link.ts'
import { type ResumingOptions, resumingSender } from './resuming-sender.ts'

export interface SourceLink {
  /** Resolves when there is a link. */
  reader: Promise<FrameReader>
  writer: FrameWriter
  /** The frames `snapshot` and `handOver` were sent, and the target's `hello` was read. */
  greeted: boolean
  /** Rejects sends that wait for the target. */
  cut(reason: Error): void
  destroy(reason?: Error): void
}

/** One connection. Aborts `stop` when the target takes nothing for `timeoutMs`: the tasks are frozen meanwhile. */
export function singleLink(connecting: Promise<Link>, timeoutMs: number, stop: AbortController): SourceLink {
  const destroy = (reason?: Error): void => void connecting.then((link) => link.destroy(reason)).catch(() => {})
  return {
    reader: connecting.then((link) => frameReader(link.inlet)),
    writer: frameWriter(whenConnected(connecting, timeoutMs, stop)),
    greeted: false,
    cut: destroy,
    destroy,
  }
}

/** A session that goes on over a new connection, which `connect` makes, when one breaks (see session.ts). */
export function resumableLink(options: ResumingOptions): SourceLink {
  const session = resumingSender(options)
  const { inlet, outlet, destroy } = session.link
  const onGot = (position: number): void => session.acknowledged(position)
  return {
    reader: Promise.resolve(frameReader(inlet, { onGot, started: true })),
    writer: frameWriter(outlet, true),
    greeted: true,
    cut: (reason) => session.stop(reason),
    destroy,
  }
}

/** A link that takes this much within the time-out is slow, and not stuck. */
const LEAST_TAKEN = 64 * 2 ** 10

/** Sends `bytes`. Aborts `stop`, with `TIMEOUT`, when `who` takes nothing for `timeoutMs`. */
export async function sendSteadily(
  outlet: Outlet,
  bytes: Uint8Array,
  more: boolean | undefined,
  timeoutMs: number,
  who: string,
  stop: AbortController,
): Promise<void> {
  for (let at = 0; at < bytes.length; at += LEAST_TAKEN) {
    const end = at + LEAST_TAKEN
    const stuck = (): void => stop.abort(new Fault('TIMEOUT', `${who} took nothing for ${timeoutMs / 1000} s`))
    const timer = setTimeout(stuck, timeoutMs)
    await outlet.send(bytes.subarray(at, end), more === true || end < bytes.length).finally(() => clearTimeout(timer))
  }
}

/** An outlet before there is a link: what is sent waits until `connecting` has made it. */
export function whenConnected(connecting: Promise<Link>, timeoutMs: number, stop: AbortController): Outlet {
  return {
    async send(bytes, more) {
      await sendSteadily((await connecting).outlet, bytes, more, timeoutMs, 'the target', stop)
    },
    finish: async () => (await connecting).outlet.finish(),
  }
}
