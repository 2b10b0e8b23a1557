/** Two ends of one connection, for handing over. */
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Fd } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { acceptUnix, connectUnix, listenUnix } from '../../lib/kernel/unix.ts'

/** Two connected UNIX sockets; `folder` is needed for a moment. */
export async function socketPair(folder: string): Promise<[Fd, Fd]> {
  const path = join(folder, 'pair.sock')
  const listener = listenUnix(path)
  const one = connectUnix(path)
  const two = await acceptUnix(listener)
  closeFd(listener)
  rmSync(path)
  return [one, two]
}
