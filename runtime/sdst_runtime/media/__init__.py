"""Video files to clips of pictures: decoding by presentation time, in this process or in workers."""
