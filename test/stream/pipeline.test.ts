/** The stages by themselves, joined by pump as a program of somebody else joins them. */
import { Transform, Writable } from 'node:stream'
import pump from 'pump'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { frames } from '../../lib/stream/encode-frames.ts'
import type { Part } from '../../lib/stream/image-part.ts'
import { imageStream } from '../../lib/stream/image-stream.ts'
import { link } from '../../lib/stream/link-stage.ts'
import { pack } from '../../lib/stream/pack.ts'
import { runPipeline } from '../../lib/stream/pipeline.ts'
import { rejectsFault, within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { id, image, receiveBytes, sourceOf } from './snapshots.ts'

const test = suite('stream/pipeline')

const images = [image('a.img', 300_000, 'pipe', 5000), image('b.img', 3_000_000), image('inventory.img', 9)]

/** A Node stream that keeps what is written into it, and takes its time. */
function kept(): { stream: Writable; bytes: () => Buffer } {
  const chunks: Buffer[] = []
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      chunks.push(Buffer.from(chunk))
      setImmediate(done)
    },
  })
  return { stream, bytes: () => Buffer.concat(chunks) }
}

/** What pump calls back with, once the stream is closed. */
function pumped(...stages: Parameters<typeof pump>[0][]): Promise<Error | undefined> {
  return within(new Promise((resolve) => pump(stages as NodeJS.ReadWriteStream[], resolve)))
}

test('a stage of somebody else sees every part, and what comes out is one snapshot', async () => {
  const { stream, bytes } = kept()
  const packed = pack({ compress: 'lz4' })
  let raw = 0
  const counting = new Transform({
    objectMode: true,
    transform(part: Part, _encoding, done) {
      for (const { frame } of part.frames) {
        if (frame.type === 'data') raw += frame.length
        if (frame.type === 'packed' || frame.type === 'zeros') raw += frame.raw
      }
      done(null, part)
    },
  })
  const error = await pumped(imageStream(sourceOf(images)), packed, counting, frames({ id }), link(stream))
  assert.is(error, undefined)
  assert.is(raw, 3_300_009)
  assert.equal(await receiveBytes(bytes()), { ...packed.snapshot, id })
})

test('a stage that fails ends all of them, and the receiver hears of it', async () => {
  const before = openFds()
  const reason = new Fault('IO', 'the disk is full')
  const { stream, bytes } = kept()
  let parts = 0
  const failing = new Transform({
    objectMode: true,
    transform: (part: Part, _encoding, done) => (++parts > 5 ? done(reason) : done(null, part)),
  })
  const source = sourceOf(images)
  const closed = new Promise((resolve) => stream.once('close', resolve))
  assert.is(await pumped(imageStream(source), pack(), failing, frames({ id }), link(stream)), reason)
  await within(closed)
  await within(source.written)
  assert.is(source.destroyed?.message, 'the pipeline was stopped')
  await rejectsFault('ABORTED', receiveBytes(bytes()), 'pump gives no reasons to the other stages')
  assert.is(openFds(), before)
})

test('a pipeline that is stopped before it began says what it is, and why it ends', async () => {
  const { stream, bytes } = kept()
  const reason = new Fault('TIMEOUT', 'too late')
  const failed: Error[] = []
  const source = sourceOf(images)
  const { done, stop } = runPipeline([imageStream(source), pack(), frames({ id }), link(stream)], (why) =>
    failed.push(why),
  )
  stop(reason)
  stop(new Error('another'))
  assert.is(await rejectsFault('TIMEOUT', within(done)), reason)
  assert.equal(failed, [reason])
  assert.is(source.destroyed, reason)
  await rejectsFault('TIMEOUT', receiveBytes(bytes()))
})

test.run()
