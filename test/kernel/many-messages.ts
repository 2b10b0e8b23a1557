/** Run by unix.test.ts with a collector that is made to hurry: thousands of messages, each checked. */
import { makePipe } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { receiveWithFds } from '../../lib/kernel/unix.ts'
import { sendWithFds } from '../support/fake-criu.ts'
import { socketPair } from './fds.ts'

const [near, far] = await socketPair()
const [out, into] = makePipe()
let wrong = 0
for (let round = 0; round < 5000; round++) {
  const text = `message ${round} `.padEnd(40 + (round % 40), 'x')
  sendWithFds(near, Buffer.from(text), [out])
  const got = Buffer.alloc(text.length)
  const { bytes, fds } = await receiveWithFds(far, got)
  if (bytes !== text.length || fds.length !== 1 || got.toString() !== text) wrong++
  for (const fd of fds) closeFd(fd)
}
for (const fd of [near, far, out, into]) closeFd(fd)
console.log(`${wrong} wrong`)
