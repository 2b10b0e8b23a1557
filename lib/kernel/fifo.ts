/** Named pipes. */
import { asFd, check, type Fd } from './fd.ts'
import { mkfifo, O_CLOEXEC, O_NONBLOCK, O_RDWR, open } from './libc.ts'

/** Makes a FIFO that only this user may use. Throws `IO`. */
export function makeFifo(path: string): void {
  check(mkfifo(path, 0o600), 'mkfifo')
}

/** Opens both ends of a FIFO, so that it waits for no other process and does not end with one. Throws `IO`. */
export function openFifo(path: string): Fd {
  return asFd(check(open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0), 'open'))
}
