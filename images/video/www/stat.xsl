<?xml version="1.0" encoding="utf-8"?>
<!-- Shows /stat of the RTMP module as a page: applications, their streams, and who plays or publishes them. -->
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:output method="html" encoding="utf-8"/>

<xsl:template match="/rtmp">
  <html lang="en">
    <head>
      <title>RTMP statistics</title>
      <link rel="icon" href="icon.svg"/>
      <style>
        body { margin: 2rem; background: #11141a; color: #eceff4; font: 15px/1.5 system-ui, sans-serif; }
        table { border-collapse: collapse; margin: 0 0 2rem; }
        th, td { padding: .3rem .9rem; border-bottom: 1px solid #2b313c; text-align: left; }
        th { color: #98a2b3; font-weight: 600; }
        .n { text-align: right; font-variant-numeric: tabular-nums; }
      </style>
    </head>
    <body>
      <h1>RTMP statistics</h1>
      <p>
        nginx <xsl:value-of select="nginx_version"/>, RTMP module <xsl:value-of select="nginx_rtmp_version"/>;
        up <xsl:value-of select="uptime"/> s, <xsl:value-of select="naccepted"/> connections accepted,
        <xsl:value-of select="round(bytes_in div 1024)"/> KiB received,
        <xsl:value-of select="round(bytes_out div 1024)"/> KiB sent
      </p>
      <xsl:apply-templates select="server/application"/>
    </body>
  </html>
</xsl:template>

<xsl:template match="application">
  <h2><xsl:value-of select="name"/></h2>
  <table>
    <tr><th>stream</th><th>picture</th><th>sound</th><th>client</th><th>does</th><th class="n">seconds</th><th class="n">dropped</th></tr>
    <xsl:apply-templates select="(live|play)/stream/client"/>
    <xsl:if test="not((live|play)/stream/client)"><tr><td colspan="7">no client</td></tr></xsl:if>
  </table>
</xsl:template>

<xsl:template match="client">
  <tr>
    <td><xsl:value-of select="../name"/></td>
    <td>
      <xsl:if test="../meta/video/width">
        <xsl:value-of select="concat(../meta/video/codec, ' ', ../meta/video/width, '×', ../meta/video/height)"/>
      </xsl:if>
    </td>
    <td><xsl:value-of select="concat(../meta/audio/codec, ' ', ../meta/audio/sample_rate)"/></td>
    <td><xsl:value-of select="address"/></td>
    <td>
      <xsl:choose><xsl:when test="publishing">publishes</xsl:when><xsl:otherwise>plays</xsl:otherwise></xsl:choose>
    </td>
    <td class="n"><xsl:value-of select="round(time div 1000)"/></td>
    <td class="n"><xsl:value-of select="dropped"/></td>
  </tr>
</xsl:template>
</xsl:stylesheet>
