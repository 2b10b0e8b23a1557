/**
 * A restore that takes one image out of the cache in a directory, and leaves. What else is on its command line is for
 * the cache: our action script.
 */
import { join } from 'node:path'
import { SERVE_SOCKET } from '../../lib/criu/serve.ts'
import { fakeRestore } from './fake-criu.ts'

const [directory = '', name = ''] = process.argv.slice(2)
const restore = fakeRestore(join(directory, SERVE_SOCKET))
process.stdout.write((await restore.image(name)) ?? '')
restore.close()
