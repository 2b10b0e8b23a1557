/**
 * How the cache ends a connection so that the peer can read the reason. Closing a socket over unread bytes makes TCP
 * reset the connection, and the peer may learn of the reset before it has read the last frame. So what the peer has
 * already sent is read and dropped first.
 */
import type net from 'node:net'
import type { Fault } from '../fault.ts'
import { encodeFrame } from '../format/frame.ts'
import type { Frame } from '../format/frame-types.ts'
import { encodePreamble } from '../format/preamble.ts'
import { refusalOf } from '../format/refusal.ts'
import type { FrameWriter } from '../stream/frames.ts'
import type { Link } from '../stream/link.ts'

/** How long a peer has to read the reason and to close its end. */
const LINGER_MS = 5000
/** All links read into this buffer what they drop; nobody looks at it. */
const dropped = Buffer.allocUnsafeSlow(64 * 2 ** 10)

/** The `refused` frame that tells a peer of `fault`. */
export function refusedFrame(fault: Fault): Frame {
  return { type: 'refused', code: refusalOf(fault), reason: fault.message }
}

/** Sends the reason as the last frame. */
export async function sendRefusal(link: Link, writer: FrameWriter, fault: Fault): Promise<void> {
  await writer.send(refusedFrame(fault))
  await link.outlet.finish()
}

/**
 * Sends the last bytes by `send`, and drops what the peer still sends until it closes, for at most 5 s. Throws nothing.
 */
export async function linger(link: Link, send = (): Promise<void> => link.outlet.finish()): Promise<void> {
  const timer = setTimeout(() => link.destroy(), LINGER_MS)
  try {
    await send()
    while ((await link.inlet.read(dropped)) > 0);
  } catch {
  } finally {
    clearTimeout(timer)
  }
}

/** Refuses a TCP connection before anything of it is read: sends the reason and closes it, after at most 5 s. */
export async function refuseSocket(socket: net.Socket, fault: Fault): Promise<void> {
  const frames: Frame[] = [{ type: 'hello' }, refusedFrame(fault)]
  const closed = new Promise<void>((resolve) => void socket.once('close', () => resolve()))
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  socket.on('error', () => {})
  socket.resume()
  socket.end(Buffer.concat([encodePreamble(), ...frames.map((frame) => encodeFrame(frame))]))
  await closed
  clearTimeout(timer)
}
